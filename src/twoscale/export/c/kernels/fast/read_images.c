/* A row of float pixels, in planes, to integers, channels together; equation (11). Clamped before it is rounded, which
 * is the same since both bounds are integers. Returns whether there is a NaN or an infinity. */
static int quantize_row(const read_images_params *p, const float *x, int32_t plane, uint8_t *y)
{
    const v16f scale = set_f(p->scale), lo = set_f(p->lo), hi = set_f(p->hi);
    const v16i zero = set_i(p->zero);
    int bad = 0;

    for (int32_t i = 0; i < p->in_w; i += 16) {
        const int32_t count = p->in_w - i < 16 ? p->in_w - i : 16;

        /* Up to four channels, side by side in 32 bits. Where they are three, a pixel's fourth byte is overwritten by
         * the next pixel, but for the last one's, which may belong to somebody else. */
        for (int32_t c = 0; c < p->in_c; c += 4) {
            const int32_t together = p->in_c - c < 4 ? p->in_c - c : 4;
            int32_t whole = together == 4 ? count : together == 3 && p->in_c == 3 ? count - 1 : 0;
            uint8_t bytes[64];
            v16i pixels = set_i(0);

            for (int32_t k = 0; k < together; k++) {
                const v16f real = load_f(x + (c + k) * plane + i, count);

                bad |= not_finite(real);
                pixels = put_byte(pixels, add_i(round_f(clamp_f(divide(real, scale), lo, hi)), zero), k);
            }
            store_i(bytes, pixels, 16);
            for (int32_t k = 0; k < whole; k++)
                memcpy(y + (i + k) * p->in_c + c, bytes + 4 * k, 4);
            for (; whole < count; whole++)
                memcpy(y + (i + whole) * p->in_c + c, bytes + 4 * whole, (size_t)together);
        }
    }
    return bad;
}

/* A block of images as the first tensor. Returns whether there is a NaN or an infinity. */
static int read_images(const read_images_params *p, const block *b, uint8_t *y)
{
    const int32_t plane = p->in_h * p->in_w, length = p->in_w * p->in_c;
    const int64_t size = (int64_t)plane * p->in_c;
    int bad = 0;

    for (int64_t n = b->first; n < b->first + b->count; n++, y += IMAGE_BYTES) {
        for (int32_t row = 0; row < p->in_h; row++) {
            uint8_t *to = y + row * p->row_stride;

            if (b->form == FLOATS) {
                bad |= quantize_row(p, (const float *)b->images + n * size + row * p->in_w, plane, to);
            } else {
                memcpy(to, (const uint8_t *)b->images + n * size + row * length, (size_t)length);
                for (int32_t i = 0; p->shift != 0 && i < length; i++)
                    to[i] = (uint8_t)(to[i] + p->shift);
            }
        }
    }
    return bad;
}
