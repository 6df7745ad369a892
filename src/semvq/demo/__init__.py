"""`semvq demo`: the whole path on packaged photos, as one readable story."""
