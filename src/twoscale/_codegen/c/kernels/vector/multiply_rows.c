/* Products, equation (3) with acc = (q_a - z_a) * (q_b - z_b), which floats hold exactly. */
static void multiply_rows(const join_params *p, const uint8_t *a, const uint8_t *b, uint8_t *y, int32_t count, share part)
{
    const int32_t first_row = start_of(p->rows, part), end_row = start_of(p->rows, next(part));
    const v16f scale = set_f(p->a_scale), lo = set_f(p->lo), hi = set_f(p->hi);
    const v16i a_zero = set_i(-p->a_zero), b_zero = set_i(-p->b_zero), zero = set_i(p->zero);
    const int32_t run = p->gates ? p->gates : p->row_bytes;

    for (int32_t n = 0; n < count; n++, a += IMAGE_BYTES, b += IMAGE_BYTES, y += IMAGE_BYTES) {
        for (int32_t row = first_row; row < end_row; row++) {
            const uint8_t *gates = p->gates ? b : b + row * p->b_row;

            for (int32_t first = 0; first < p->row_bytes; first += run) {
                const uint8_t *from = a + row * p->a_row + first;
                uint8_t *to = y + row * p->out_row + first;

                for (int32_t i = 0; i < run; i += 16) {
                    const v16f left = to_f(add_i(load_u8(from + i, 16), a_zero));
                    const v16f right = to_f(add_i(load_u8(gates + i, 16), b_zero));
                    const v16f q = clamp_f(mul(mul(left, right), scale), lo, hi);

                    store_u8(to + i, add_i(round_f(q), zero), run - i);
                }
            }
        }
    }
}
