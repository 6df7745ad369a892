"""A live page on this machine: finished runs tried on photos, in a browser (`semvq serve`)."""
