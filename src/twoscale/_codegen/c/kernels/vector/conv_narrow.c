/* The windows, residuals and results of a tile's pixels, which may be anywhere. */
typedef struct {
    const uint8_t *x[PIXELS], *residual[PIXELS];
    uint8_t *y[PIXELS];
} conv_tile_rows;

INLINE window conv_window(const conv_params *p, int32_t vectors, int32_t bits)
{
    const int32_t words = p->segments * p->words;
    const window at = {words / p->run_words, p->run_words, p->segment, p->run_words / p->words, 64 * vectors, NULL,
                       bits < 8};

    return at;
}

#ifdef UNSIGNED_ACTIVATIONS
#define BIAS bias
#else
#define BIAS signed_bias /* for activations less 128 */
#endif

/* Requantize and store `pixels` windows of `count` channels. The zero point is added before rounding; it is even, so it
 * changes no tie. `p->zero` also accounts for the zero point of the residual. */
INLINE void conv_results(const conv_params *p, const conv_tile_rows *at, const v16i *acc, int32_t channel, int32_t pixels,
                         int32_t count, int32_t end)
{
    const v16b lo = set_b(p->lo), hi = set_b(p->hi);
    const v16f zero = set_f(p->zero), residual_scale = set_f(p->residual_scale);
    v16f scale;

    if (end == NUMBERS) {
        EACH_PIXEL store_i(at->y[n] + 4 * channel, acc[n], count);
        return;
    }
#ifdef FIXED_POINT
    if (end == FIXED) { /* to float32 and back, which is exact for what does not saturate */
        EACH_PIXEL
        {
            const v16i whole = fixed_16(acc[n], p->mantissa + channel, p->exponent + channel);
            const v16f real = mul_add(to_f(whole), set_f(1.0f), zero);

            store_b(at->y[n] + channel, clamp_b(rounded_bytes(real), lo, hi), count);
        }
        return;
    }
#endif
    scale = load_f(p->scale + channel, 16);
    EACH_PIXEL
    {
        v16f real = zero;

        if (end == JOINED)
            real = mul_add(to_f(load_u8(at->residual[n] + channel, 16)), residual_scale, real);
        real = mul_add(to_f(acc[n]), scale, real);
        store_b(at->y[n] + channel, clamp_b(rounded_bytes(real), lo, hi), count);
    }
}

/* A tile: 1 or PIXELS windows, and 16 channels. */
INLINE void conv_tile(const conv_params *p, const window *at, const conv_tile_rows *rows, const int8_t *w, int32_t channel,
                      int32_t pixels, int32_t bits, int32_t end)
{
    const v16i bias = load_i(p->BIAS + channel);
    v16i acc[PIXELS];

    EACH_PIXEL acc[n] = bias;
    add_windows(acc, at, rows->x, w, pixels, bits);
    if (p->out_c - channel >= 16)
        conv_results(p, rows, acc, channel, pixels, 16, end);
    else
        conv_results(p, rows, acc, channel, pixels, p->out_c - channel, end);
}

#undef BIAS

/* A pixel of a thread's part of a block of images. */
typedef struct {
    conv_start start;
    int32_t row, pixel, end_row;
} conv_place;

/* Go on by so many pixels of this row. */
INLINE void conv_next(const conv_params *p, conv_place *at, const uint8_t *x, const uint8_t *residual, uint8_t *y,
                      int32_t pixels, int32_t step, int32_t end)
{
    at->pixel += pixels;
    if (at->pixel < p->out_w) {
        at->start.x += pixels * step;
        at->start.residual = end == JOINED ? at->start.residual + pixels * p->residual_pixel : NULL;
        at->start.y += pixels * p->out_pixel;
    } else if (++at->row < at->end_row) {
        at->start = conv_row(p, x, residual, y, at->row, end);
        at->pixel = 0;
    }
}

#ifdef UNPACKED_BYTES
#define CONV_TILE(pixels) \
    if (unpacks) \
        conv_tile(p, &at, &rows, w, 16 * group, pixels, 8, end); \
    else \
        conv_tile(p, &at, &rows, w, 16 * group, pixels, bits, end);
#else
#define CONV_TILE(pixels) conv_tile(p, &at, &rows, w, 16 * group, pixels, bits, end);
#endif

/* A thread's part of a block of images: some rows, or some groups of 16 channels. The pixels of a tile follow each other, and
 * may be in different rows and images. The last ones are computed one by one. */
INLINE void conv_images(const conv_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y, int32_t count,
                        share part, int32_t vectors, int32_t step, int32_t bits, int32_t end)
{
    window at = conv_window(p, vectors, bits);
    const int32_t block_bytes = at.stride * p->segments * p->words;
    const int32_t groups = (p->out_c + 15) / 16;
    const share whole = {0, 1}, of_rows = p->by_channels ? whole : part, of_groups = p->by_channels ? part : whole;
    const conv_part mine = conv_rows_of(p, count, of_rows, 1);
    const int32_t last = start_of(groups, next(of_groups));
#ifdef ARRANGED_BYTES
    int8_t arranged[ARRANGED_BYTES];
#endif
#ifdef UNPACKED_BYTES
    const window packed = at;
    const int32_t unpacks = bits < 8 && at.runs * WORDS(&at, bits) * 64 <= UNPACKED_BYTES;
    int8_t bytes[UNPACKED_BYTES];

    if (unpacks) {
        at.words = WORDS(&at, bits);
        at.step = p->run_words / p->words;
        at.stride = 64;
    }
#endif

    for (int32_t group = start_of(groups, of_groups); group < last && mine.first < mine.end; group++) {
        const int8_t *w = p->weight + group / vectors * block_bytes + group % vectors * 64;
        conv_place here = {conv_row(p, x, residual, y, mine.first, end), mine.first, 0, mine.end};
        int32_t left = (mine.end - mine.first) * p->out_w;

#ifdef ARRANGED_BYTES
        at.arranged = arrange(arranged, &at, w, bits);
#endif
#ifdef UNPACKED_BYTES
        if (unpacks) {
            unpack_words(bytes, &packed, w, bits);
            w = bytes;
        }
#endif
        for (; left >= PIXELS; left -= PIXELS) {
            conv_tile_rows rows;

            if (here.pixel + PIXELS <= p->out_w) {
                UNROLL
                for (int32_t n = 0; n < PIXELS; n++) {
                    rows.x[n] = here.start.x + n * step;
                    rows.residual[n] = end == JOINED ? here.start.residual + n * p->residual_pixel : NULL;
                    rows.y[n] = here.start.y + n * p->out_pixel;
                }
                conv_next(p, &here, x, residual, y, PIXELS, step, end);
            } else {
                UNROLL
                for (int32_t n = 0; n < PIXELS; n++) {
                    rows.x[n] = here.start.x;
                    rows.residual[n] = here.start.residual;
                    rows.y[n] = here.start.y;
                    conv_next(p, &here, x, residual, y, 1, step, end);
                }
            }
            CONV_TILE(PIXELS)
        }
        for (; left > 0; left--) {
            const conv_tile_rows rows = {{here.start.x}, {here.start.residual}, {here.start.y}};

            CONV_TILE(1)
            conv_next(p, &here, x, residual, y, 1, step, end);
        }
    }
}

#undef CONV_TILE

/* A kernel for one distance between windows. The shape of the tile is that of other instruction sets. */
#define CONV(name, pixels, rows, vectors, step, words, fetch, bits, end) \
    KERNEL void name(const conv_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y, int32_t count, share part) \
    { \
        conv_images(p, x, residual, y, count, part, vectors, step, bits, end); \
    }
