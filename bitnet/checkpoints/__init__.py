"""A model's files, whatever the container: read, repack, convert, fetch, plan their memory."""
