/* Sums, equation (7). */
static void add_rows(const join_params *p, const uint8_t *a, const uint8_t *b, uint8_t *y, int32_t count, share part)
{
    const int32_t first_row = start_of(p->rows, part), end_row = start_of(p->rows, next(part));
    const v16f a_scale = set_f(p->a_scale), b_scale = set_f(p->b_scale), lo = set_f(p->lo), hi = set_f(p->hi);
    const v16i a_zero = set_i(-p->a_zero), b_zero = set_i(-p->b_zero), zero = set_i(p->zero);

    for (int32_t n = 0; n < count; n++, a += IMAGE_BYTES, b += IMAGE_BYTES, y += IMAGE_BYTES) {
        for (int32_t row = first_row; row < end_row; row++) {
            for (int32_t i = 0; i < p->row_bytes; i += 16) {
                const v16f left = to_f(add_i(load_u8(a + row * p->a_row + i, 16), a_zero));
                const v16f right = to_f(add_i(load_u8(b + row * p->b_row + i, 16), b_zero));
                const v16f q = clamp_f(mul_add(left, a_scale, mul(right, b_scale)), lo, hi);

                store_u8(y + row * p->out_row + i, add_i(round_f(q), zero), p->row_bytes - i);
            }
        }
    }
}
