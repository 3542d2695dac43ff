/* Sums in TensorFlow Lite's arithmetic, equation (19). */
static void add_fixed_rows(const add_fixed_rows_params *p, const uint8_t *a, const uint8_t *b, uint8_t *y, int32_t count,
                           share part)
{
    const int32_t first_row = start_of(p->rows, part), end_row = start_of(p->rows, next(part));
    const v16i a_zero = set_i(-p->a_zero), b_zero = set_i(-p->b_zero), zero = set_i(p->zero);
    const v16i a_mantissa = set_i(p->a_mantissa), a_exponent = set_i(p->a_exponent);
    const v16i b_mantissa = set_i(p->b_mantissa), b_exponent = set_i(p->b_exponent);
    const v16i mantissa = set_i(p->mantissa), exponent = set_i(p->exponent);
    const v16f lo = set_f((float)(p->lo - p->zero)), hi = set_f((float)(p->hi - p->zero));

    for (int32_t n = 0; n < count; n++, a += IMAGE_BYTES, b += IMAGE_BYTES, y += IMAGE_BYTES) {
        for (int32_t row = first_row; row < end_row; row++) {
            for (int32_t i = 0; i < p->row_bytes; i += 16) {
                const v16i left = add_i(load_u8(a + row * p->a_row + i, 16), a_zero);
                const v16i right = add_i(load_u8(b + row * p->b_row + i, 16), b_zero);
                const v16i total =
                    add_i(fixed_by(left, a_mantissa, a_exponent, 20), fixed_by(right, b_mantissa, b_exponent, 20));
                const v16f q = clamp_f(to_f(fixed_by(total, mantissa, exponent, 0)), lo, hi);

                store_u8(y + row * p->out_row + i, add_i(round_f(q), zero), p->row_bytes - i);
            }
        }
    }
}
