/* Any function of one byte, on rows that need not be adjacent. */
typedef struct {
    int32_t rows, row_bytes;
    int32_t in_row, out_row; /* bytes between rows */
    const uint8_t *table;    /* [256] */
} look_up_rows_params;
