"""All rows, in the order of the table; peers come last and only when asked for."""

from bench import code_rows, data_rows, peer_rows, tokenizer_rows, transformer_rows
from bench.case import Row

ROWS: tuple[Row, ...] = (
    *tokenizer_rows.ROWS,
    *transformer_rows.ROWS,
    *code_rows.ROWS,
    *data_rows.ROWS,
)
PEERS: tuple[Row, ...] = peer_rows.ROWS
