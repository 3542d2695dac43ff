/* What an accumulator of 16 channels, from `channel` on, of one pixel becomes. */
INLINE void conv_store(const conv_params *p, v16i acc, int32_t channel, const uint8_t *residual, uint8_t *y)
{
    const int32_t rest = p->out_c - channel;
    v16f q;

    if (p->scale == NULL) {
        store_i(y + 4 * channel, acc, rest);
        return;
    }
    if (residual == NULL) {
        q = mul(to_f(acc), load_f(p->scale + channel, 16));
    } else {
        const v16i joined = add_i(load_u8(residual + channel, rest), set_i(-p->residual_zero));

        q = mul_add(to_f(acc), load_f(p->scale + channel, 16), mul(to_f(joined), set_f(p->residual_scale)));
    }
    store_u8(y + channel, add_i(round_f(clamp_f(q, set_f(p->lo), set_f(p->hi))), set_i(p->zero)), rest);
}

/* The accumulators of a tile, one by one: as an array, compilers would not keep all of them in registers. */
#define EACH_ACCUMULATOR(DO) \
    DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) \
    DO(12) DO(13) DO(14) DO(15) DO(16) DO(17) DO(18) DO(19) DO(20) DO(21) DO(22) DO(23)
#define PIXEL(i) ((i) / vectors % pixels)
#define ROW(i) ((i) / vectors / pixels)
#define BEGIN(i) \
    if (i < used) \
        acc##i = load_i(p->bias + channel + 16 * (i % vectors));
#define ADD(i) \
    if (i < used) \
        acc##i = dot(acc##i, load_word(from + ROW(i) * p->row_step + PIXEL(i) * step), many[i % vectors]);
#define STORE(i) \
    if (i < used) \
        conv_store(p, acc##i, channel + 16 * (i % vectors), \
                   residual == NULL ? NULL : residual + ROW(i) * p->residual_row + PIXEL(i) * p->residual_pixel, \
                   y + ROW(i) * p->out_row + PIXEL(i) * p->out_pixel);

/* A tile: `pixels` windows, `step` bytes apart, of each of `rows` rows, and 16 * `vectors` channels, whose weights for
 * one word are followed by the next `stride` bytes later. Runs are of `words` words, or, if that is 0, of p->words. All but
 * p and pointers are known when it is compiled. */
INLINE void conv_tile(const conv_params *p, const uint8_t *x, const int8_t *w, int32_t channel, const uint8_t *residual,
                      uint8_t *y, int32_t pixels, int32_t rows, int32_t vectors, int32_t step, int32_t stride,
                      int32_t words)
{
    const int32_t used = pixels * rows * vectors, run = words > 0 ? words : p->words;
    v16i acc0, acc1, acc2, acc3, acc4, acc5, acc6, acc7, acc8, acc9, acc10, acc11;
    v16i acc12, acc13, acc14, acc15, acc16, acc17, acc18, acc19, acc20, acc21, acc22, acc23;

    EACH_ACCUMULATOR(BEGIN)
    for (int32_t s = 0; s < p->segments; s++) {
        const uint8_t *from = x + p->segment[s];

        for (int32_t k = 0; k < run; k++, from += 4, w += stride) {
            weights many[4];

            many[0] = load_weights(w);
            if (vectors > 1)
                many[1] = load_weights(w + 64);
            if (vectors > 2)
                many[2] = load_weights(w + 128);
            if (vectors > 3)
                many[3] = load_weights(w + 192);
            EACH_ACCUMULATOR(ADD)
        }
    }
    EACH_ACCUMULATOR(STORE)
}

#undef EACH_ACCUMULATOR
#undef PIXEL
#undef ROW
#undef BEGIN
#undef ADD
#undef STORE

/* A block of images, tile after tile. Weights stay in the cache for all pixels of all images. Tiles at the right and
 * at the bottom are moved back where they would not fit, and compute some pixels again. */
INLINE void conv_images(const conv_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y, int32_t count,
                        int32_t wide, int32_t high, int32_t vectors, int32_t step, int32_t words)
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
                              pixels, rows, together, step, stride, words);
                }
            }
        }
    }
}

/* A kernel for one shape of tile. */
#define CONV(name, pixels, rows, vectors, step, words) \
    KERNEL void name(const conv_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y, int32_t count) \
    { \
        conv_images(p, x, residual, y, count, pixels, rows, vectors, step, words); \
    }
