/* Sums and products of two tensors. Rows need not be adjacent. */
typedef struct {
    int32_t rows, row_bytes;
    int32_t a_row, b_row, out_row; /* bytes between rows */
    int32_t gates;                 /* products: b has this many values, one per channel; 0: as many as a */
    int32_t a_zero, b_zero;
    float a_scale, b_scale; /* sums: m_a / 2^14, m_b / 2^14; products: m / 2^16, 1 */
    float lo, hi;           /* relative to the zero point */
    int32_t zero;
} join_params;
