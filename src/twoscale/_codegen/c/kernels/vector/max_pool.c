/* The largest of each window, for 16 channels. Taps outside the image never win, so they are left out. */
INLINE v16b window_max(const pool_params *p, const uint8_t *x, int32_t top, int32_t left, int32_t height, int32_t width,
                       int32_t inside)
{
    const int32_t step_h = p->dilation_h * p->in_row, step_w = p->dilation_w * p->channels;
    v16b most = set_b(0);

    x += top * p->in_row + left * p->channels;
    if (inside || (top >= 0 && left >= 0 && top + (height - 1) * p->dilation_h < p->in_h &&
                   left + (width - 1) * p->dilation_w < p->in_w)) {
        for (int32_t ky = 0; ky < height; ky++)
            for (int32_t kx = 0; kx < width; kx++)
                most = max_b(most, load_b(x + ky * step_h + kx * step_w));
        return most;
    }
    for (int32_t ky = 0; ky < height; ky++) {
        for (int32_t kx = 0; kx < width; kx++) {
            const int32_t row = top + ky * p->dilation_h, column = left + kx * p->dilation_w;

            if (row >= 0 && row < p->in_h && column >= 0 && column < p->in_w)
                most = max_b(most, load_b(x + ky * step_h + kx * step_w));
        }
    }
    return most;
}

/* One row of results of at most 16 channels whose windows are inside the image. The last pixels have stores of their
 * length, the others store 16 bytes, of which the next pixel overwrites what is beyond the channels. */
INLINE void max_pool_row(const pool_params *p, const uint8_t *x, uint8_t *y, int32_t height, int32_t width)
{
    const int32_t channels = p->channels, step = p->stride_w * channels, out_w = p->out_w;
    const int32_t whole = out_w - (16 + channels - 1) / channels + 1;
    int32_t j = 0;

    for (; j < whole; j++, x += step, y += channels)
        store_b(y, window_max(p, x, 0, 0, height, width, 1), 16);
    for (; j < out_w; j++, x += step, y += channels)
        store_b(y, window_max(p, x, 0, 0, height, width, 1), (out_w - j) * channels);
}

/* Maxima over windows, equation (9). Bytes stored beyond a pixel's channels are overwritten by the next pixel. */
INLINE void max_pool_images(const pool_params *params, const uint8_t *x, uint8_t *y, int32_t count, share part,
                            int32_t height, int32_t width, int32_t inside)
{
    const pool_params own = *params, *const p = &own; /* stores of bytes could change what `params` points to */
    const int32_t first = start_of(p->out_h, part), end = start_of(p->out_h, next(part));

    for (int32_t n = 0; n < count; n++, x += IMAGE_BYTES, y += IMAGE_BYTES) {
        for (int32_t i = first; i < end; i++) {
            uint8_t *to = y + i * p->out_row;

            if (inside && p->channels <= 16) {
                max_pool_row(p, x + i * p->stride_h * p->in_row, to, height, width);
                continue;
            }
            for (int32_t j = 0; j < p->out_w; j++, to += p->channels) {
                const int32_t top = i * p->stride_h - p->pad_top, left = j * p->stride_w - p->pad_left;
                const int32_t rest = (p->out_w - j) * p->channels; /* bytes of the row */

                for (int32_t c = 0; c < p->channels; c += 16)
                    store_b(to + c, window_max(p, x + c, top, left, height, width, inside), rest - c);
            }
        }
    }
}

/* A kernel for one size of window. `inside`: all windows are inside the image. */
#define MAX_POOL(name, height, width, inside) \
    KERNEL void name(const pool_params *p, const uint8_t *x, uint8_t *y, int32_t count, share part) \
    { \
        max_pool_images(p, x, y, count, part, height, width, inside); \
    }
