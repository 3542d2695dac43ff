/* Sums in TensorFlow Lite's arithmetic. Rows need not be adjacent. */
typedef struct {
    int32_t rows, row_bytes;
    int32_t a_row, b_row, out_row; /* bytes between rows */
    int32_t a_zero, a_mantissa, a_exponent;
    int32_t b_zero, b_mantissa, b_exponent;
    int32_t mantissa, exponent; /* of the sum */
    int32_t zero, lo, hi;
} add_fixed_rows_params;
