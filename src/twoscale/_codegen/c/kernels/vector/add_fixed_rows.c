/* Sums in TensorFlow Lite's arithmetic, equation (19). */
static void add_fixed_rows(const add_fixed_rows_params *p, const uint8_t *a, const uint8_t *b, uint8_t *y, int32_t count,
                           share part)
{
    const int32_t first_row = start_of(p->rows, part), end_row = start_of(p->rows, next(part));
    const v16i a_zero = set_i(-p->a_zero), b_zero = set_i(-p->b_zero);
    int32_t mantissa[3][16], exponent[3][16];

    for (int32_t i = 0; i < 16; i++) {
        mantissa[0][i] = p->a_mantissa;
        exponent[0][i] = p->a_exponent;
        mantissa[1][i] = p->b_mantissa;
        exponent[1][i] = p->b_exponent;
        mantissa[2][i] = p->mantissa;
        exponent[2][i] = p->exponent;
    }
    for (int32_t n = 0; n < count; n++, a += IMAGE_BYTES, b += IMAGE_BYTES, y += IMAGE_BYTES) {
        for (int32_t row = first_row; row < end_row; row++) {
            for (int32_t i = 0; i < p->row_bytes; i += 16) {
                int32_t left[16], right[16];

                store_i((uint8_t *)left, add_i(load_u8(a + row * p->a_row + i, 16), a_zero), 16);
                store_i((uint8_t *)right, add_i(load_u8(b + row * p->b_row + i, 16), b_zero), 16);
                for (int32_t j = 0; j < 16; j++) {
                    left[j] *= (int32_t)1 << 20;
                    right[j] *= (int32_t)1 << 20;
                }
                fixed_numbers(left, mantissa[0], exponent[0]);
                fixed_numbers(right, mantissa[1], exponent[1]);
                for (int32_t j = 0; j < 16; j++)
                    left[j] += right[j];
                fixed_numbers(left, mantissa[2], exponent[2]);
                for (int32_t j = 0; j < 16; j++) {
                    const int32_t q = p->zero + left[j];

                    left[j] = q < p->lo ? p->lo : q > p->hi ? p->hi : q;
                }
                store_u8(y + row * p->out_row + i, load_i(left), p->row_bytes - i);
            }
        }
    }
}
