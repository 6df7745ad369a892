"""Other people's collections of images, read once by `semvq prepare` and cut into tar shards."""
