/* Means over windows, equations (8) and (3): the scale divides by the size of the window. Taps outside the image hold
 * the zero point, so they add nothing and are left out. */
static void average_pool(const pool_params *p, const uint8_t *x, uint8_t *y, int32_t count)
{
    const v16f scale = set_f(p->scale), lo = set_f(p->lo), hi = set_f(p->hi);
    const int32_t item = p->scale == 0.0f ? 4 : 1;

    for (int32_t n = 0; n < count; n++, x += IMAGE_BYTES, y += IMAGE_BYTES) {
        for (int32_t i = 0; i < p->out_h * p->out_w; i++) {
            const int32_t top = i / p->out_w * p->stride_h - p->pad_top;
            const int32_t left = i % p->out_w * p->stride_w - p->pad_left;
            const int32_t first_row = top < 0 ? 0 : top, first_column = left < 0 ? 0 : left;
            const int32_t end_row = top + p->kernel_h < p->in_h ? top + p->kernel_h : p->in_h;
            const int32_t end_column = left + p->kernel_w < p->in_w ? left + p->kernel_w : p->in_w;
            const int32_t inside = end_row > first_row && end_column > first_column
                                     ? (end_row - first_row) * (end_column - first_column)
                                     : 0;
            uint8_t *to = y + i / p->out_w * p->out_row + i % p->out_w * p->channels * item;

            for (int32_t c = 0; c < p->channels; c += 16) {
                const int32_t rest = p->channels - c;
                v16i acc = set_i(-inside * p->in_zero);

                for (int32_t row = first_row; row < end_row; row++) {
                    const uint8_t *from = x + row * p->in_row + c;

                    for (int32_t column = first_column; column < end_column; column++)
                        acc = add_i(acc, load_u8(from + column * p->channels, 16));
                }
                if (item == 4)
                    store_i(to + 4 * c, acc, rest);
                else
                    store_u8(to + c, add_i(round_f(clamp_f(mul(to_f(acc), scale), lo, hi)), set_i(p->zero)), rest);
            }
        }
    }
}
