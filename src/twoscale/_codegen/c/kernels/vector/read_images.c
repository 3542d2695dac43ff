/* From 16 float pixels to integers, equation (11). A product with the reciprocal differs from the quotient by less than
 * 2^-14, so the division is needed only if a product is close to a tie (p->tie). Clamping before rounding gives the same
 * result, since both bounds are integers. */
INLINE v16i quantize(const read_images_params *p, v16f real)
{
    const v16f lo = set_f(p->lo), hi = set_f(p->hi);
    const v16f quotient = clamp_f(mul(real, set_f(p->inverse)), lo, hi);
    v16i q = round_f(quotient);

    if (any_beyond(mul_add(to_f(q), set_f(-1.0f), quotient), p->tie))
        q = round_f(clamp_f(divide(real, set_f(p->scale)), lo, hi));
    return add_i(q, set_i(p->zero));
}

/* Up to four channels of 16 pixels, side by side in 32 bits. Channels are `plane` values apart. */
INLINE v16i quantize_pixels(const read_images_params *p, const float *x, int32_t plane, int32_t channels, int32_t count,
                            int *bad)
{
    v16i pixels = set_i(0);

    UNROLL
    for (int32_t k = 0; k < channels; k++) {
        const v16f real = load_f(x + k * plane, count);

        *bad |= not_finite(real);
        pixels = put_byte(pixels, quantize(p, real), k);
    }
    return pixels;
}

/* From a row of float pixels, in planes, to integers with channels together. Returns whether a pixel is NaN or infinite. */
static int quantize_row(const read_images_params *p, const float *x, int32_t plane, uint8_t *y)
{
    int bad = 0;
    int32_t i = 0;

    if (p->in_c == 3) {
        for (; i + 16 <= p->in_w; i += 16)
            store_threes(y + 3 * i, quantize_pixels(p, x + i, plane, 3, 16, &bad), 16);
        if (i < p->in_w)
            store_threes(y + 3 * i, quantize_pixels(p, x + i, plane, 3, p->in_w - i, &bad), p->in_w - i);
        return bad;
    }
    for (; i < p->in_w; i += 16) {
        const int32_t count = p->in_w - i < 16 ? p->in_w - i : 16;

        for (int32_t c = 0; c < p->in_c; c += 4) {
            const int32_t together = p->in_c - c < 4 ? p->in_c - c : 4;
            uint8_t bytes[64];

            store_i(bytes, quantize_pixels(p, x + c * plane + i, plane, together, count, &bad), 16);
            for (int32_t k = 0; k < count; k++)
                memcpy(y + (i + k) * p->in_c + c, bytes + 4 * k, (size_t)together);
        }
    }
    return bad;
}

/* Write a block of images as the first tensor. Returns whether a pixel is NaN or infinite. */
static int read_images(const read_images_params *p, const block *b, uint8_t *y, share part)
{
    const int32_t first_row = start_of(p->in_h, part), end_row = start_of(p->in_h, next(part));
    const int32_t plane = p->in_h * p->in_w, length = p->in_w * p->in_c;
    int bad = 0;

    for (int64_t n = b->first; n < b->first + b->count; n++, y += IMAGE_BYTES) {
        const int64_t start = n * p->sample + p->first;

        for (int32_t row = first_row; row < end_row; row++) {
            uint8_t *to = y + row * p->row_stride;

            if (b->form == FLOATS) {
                bad |= quantize_row(p, (const float *)b->images + start + row * p->in_w, plane, to);
            } else {
                memcpy(to, (const uint8_t *)b->images + start + row * length, (size_t)length);
                for (int32_t i = 0; p->shift != 0 && i < length; i++)
                    to[i] = (uint8_t)(to[i] + p->shift);
            }
        }
    }
    return bad;
}
