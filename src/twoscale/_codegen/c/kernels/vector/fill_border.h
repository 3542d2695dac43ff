/* The positions of a tensor's rows in its part of the arena. */
typedef struct {
    int32_t rows, row_bytes, row_stride;
    int32_t first, size;
    uint8_t zero;
} fill_border_params;
