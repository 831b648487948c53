"""An HTTP server of edits, in OpenAI's form."""
