"""Losses of tokenizer training (Eqs. 2 and 3, Sec. 3.3 and 3.4)."""
