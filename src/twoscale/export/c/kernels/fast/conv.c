/* What accumulators of `pixels` * `rows` pixels and 16 * `vectors` channels become. */
INLINE void conv_store(const conv_params *p, const v16i *acc, int32_t channel, const uint8_t *residual, uint8_t *y,
                       int32_t pixels, int32_t rows, int32_t vectors)
{
    if (p->scale == NULL) {
        UNROLL
        for (int32_t v = 0; v < vectors; v++) {
            const int32_t c = channel + 16 * v;

            UNROLL
            for (int32_t i = 0; i < pixels * rows; i++)
                store_i(y + i / pixels * p->out_row + i % pixels * p->out_pixel + 4 * c, acc[i * vectors + v], p->out_c - c);
        }
        return;
    }
    UNROLL
    for (int32_t v = 0; v < vectors; v++) {
        const int32_t c = channel + 16 * v, rest = p->out_c - c;
        const v16f scale = load_f(p->scale + c, 16), lo = set_f(p->lo), hi = set_f(p->hi);
        const v16i zero = set_i(p->zero);

        if (residual == NULL) {
            UNROLL
            for (int32_t i = 0; i < pixels * rows; i++) {
                const v16f q = clamp_f(mul(to_f(acc[i * vectors + v]), scale), lo, hi);

                store_u8(y + i / pixels * p->out_row + i % pixels * p->out_pixel + c, add_i(round_f(q), zero), rest);
            }
        } else {
            const v16i residual_zero = set_i(-p->residual_zero);
            const v16f residual_scale = set_f(p->residual_scale);

            UNROLL
            for (int32_t i = 0; i < pixels * rows; i++) {
                const uint8_t *from = residual + i / pixels * p->residual_row + i % pixels * p->residual_pixel + c;
                const v16f joined = mul(to_f(add_i(load_u8(from, rest), residual_zero)), residual_scale);
                const v16f q = clamp_f(mul_add(to_f(acc[i * vectors + v]), scale, joined), lo, hi);

                store_u8(y + i / pixels * p->out_row + i % pixels * p->out_pixel + c, add_i(round_f(q), zero), rest);
            }
        }
    }
}

/* A tile: `pixels` windows, `step` bytes apart, of each of `rows` rows, and 16 * `vectors` channels, whose weights for
 * one word are followed by the next `stride` bytes later. All but p and pointers are known when it is compiled. */
INLINE void conv_tile(const conv_params *p, const uint8_t *x, const int8_t *w, int32_t channel, const uint8_t *residual,
                      uint8_t *y, int32_t pixels, int32_t rows, int32_t vectors, int32_t step, int32_t stride)
{
    v16i acc[ACCUMULATORS];

    UNROLL
    for (int32_t i = 0; i < pixels * rows; i++) {
        UNROLL
        for (int32_t v = 0; v < vectors; v++)
            acc[i * vectors + v] = load_i(p->bias + channel + 16 * v);
    }
    for (int32_t s = 0; s < p->segments; s++) {
        const uint8_t *from = x + p->segment[s];

        for (int32_t k = 0; k < p->words; k++, from += 4, w += stride) {
            weights many[4];

            UNROLL
            for (int32_t v = 0; v < vectors; v++)
                many[v] = load_weights(w + 64 * v);
            UNROLL
            for (int32_t i = 0; i < pixels * rows; i++) {
                const word activations = load_word(from + i / pixels * p->row_step + i % pixels * step);

                UNROLL
                for (int32_t v = 0; v < vectors; v++)
                    acc[i * vectors + v] = dot(acc[i * vectors + v], activations, many[v]);
            }
        }
    }
    conv_store(p, acc, channel, residual, y, pixels, rows, vectors);
}

/* A block of images, tile after tile. Weights stay in the cache for all pixels of all images. Tiles at the right and
 * at the bottom are moved back where they would not fit, and compute some pixels again. */
INLINE void conv_images(const conv_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y, int32_t count,
                        int32_t wide, int32_t high, int32_t vectors, int32_t step)
{
    const int32_t fits = wide * high * vectors <= ACCUMULATORS;
    const int32_t rows = fits ? high : 1, together = fits ? vectors : 1;
    const int32_t pixels = fits || wide <= ACCUMULATORS ? wide : ACCUMULATORS;
    const int32_t stride = 64 * vectors, block_bytes = stride * p->segments * p->words;

    for (int32_t c = 0; c < p->out_c; c += 16 * together) {
        const int8_t *w = p->weight + c / (16 * vectors) * block_bytes + c % (16 * vectors) * 4;

        for (int32_t n = 0; n < count; n++) {
            const uint8_t *image = x + n * IMAGE_BYTES, *join = residual == NULL ? NULL : residual + n * IMAGE_BYTES;

            for (int32_t i = 0; i < p->out_h; i += rows) {
                const int32_t row = i + rows <= p->out_h ? i : p->out_h - rows;

                for (int32_t j = 0; j < p->out_w; j += pixels) {
                    const int32_t pixel = j + pixels <= p->out_w ? j : p->out_w - pixels;

                    conv_tile(p, image + row * p->row_step + pixel * step, w, c,
                              join == NULL ? NULL : join + row * p->residual_row + pixel * p->residual_pixel,
                              y + n * IMAGE_BYTES + row * p->out_row + pixel * p->out_pixel,
                              pixels, rows, together, step, stride);
                }
            }
        }
    }
}

/* A kernel for one shape of tile. */
#define CONV(name, pixels, rows, vectors, step) \
    static void name(const conv_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y, int32_t count) \
    { \
        conv_images(p, x, residual, y, count, pixels, rows, vectors, step); \
    }
