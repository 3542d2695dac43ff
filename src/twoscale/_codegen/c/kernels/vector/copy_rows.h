/* A copy of rows to other distances. */
typedef struct {
    int32_t rows, row_bytes;
    int32_t from_stride, to_stride;
} copy_rows_params;
