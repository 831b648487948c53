"""Adapters: changes of a checkpoint's weights, in the forms that trainers write, merged on their way to the device."""
