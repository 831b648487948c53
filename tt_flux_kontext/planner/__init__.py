"""What a Tenstorrent system would say to an edit, asked of the real TT-NN library without one."""
