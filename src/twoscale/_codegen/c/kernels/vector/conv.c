/* The start of each row of a tile: in windows, residual and results. */
typedef struct {
    const uint8_t *x[6], *residual[6];
    uint8_t *y[6];
} conv_rows;

/* How the accumulators of a tile become results; read once for all of them. */
typedef struct {
    v16f zero, residual_scale;
    v64b lo, hi;
    int32_t rest, out_pixel, residual_pixel;
} conv_end;

/* Sixteen requantized accumulators before rounding. The zero point is added already; it is even, so it changes no tie.
 * `zero` also accounts for the zero point of the residual, so the residual is multiplied without subtracting it. */
INLINE v16f conv_requantize(const conv_end *e, v16i acc, const float *scale, const uint8_t *residual)
{
    v16f zero = e->zero;

    if (residual != NULL)
        zero = mul_add(to_f(load_u8(residual, 16)), e->residual_scale, zero);
    return mul_add(to_f(acc), load_f(scale, 16), zero);
}

/* The accumulators of a tile are separate variables: compilers do not keep an array in registers. */
#define EACH_ACCUMULATOR(DO) \
    DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) \
    DO(12) DO(13) DO(14) DO(15) DO(16) DO(17) DO(18) DO(19) DO(20) DO(21) DO(22) DO(23)
#define EACH_FOUR(DO) \
    DO(0, 1, 2, 3) DO(4, 5, 6, 7) DO(8, 9, 10, 11) DO(12, 13, 14, 15) DO(16, 17, 18, 19) DO(20, 21, 22, 23)
#define VECTOR(i) ((i) % vectors)
#define PIXEL(i) ((i) / vectors % pixels)
#define ROW(i) ((i) / vectors / pixels)
#define RESULT(i) (at->y[ROW(i)] + PIXEL(i) * e->out_pixel + (channel + 16 * VECTOR(i)) * (end == NUMBERS ? 4 : 1))
#define RESIDUAL(i) \
    (end != JOINED || i >= used ? NULL : at->residual[ROW(i)] + PIXEL(i) * e->residual_pixel + channel + 16 * VECTOR(i))
#ifdef FIXED_POINT
/* In float32 only what clamping to a byte follows is rounded: numbers far beyond every byte. */
#define REQUANTIZE_FIXED(acc, first) \
    mul_add(to_f(fixed_16(acc, p->mantissa + (first), p->exponent + (first))), set_f(1.0f), e->zero)
#define REQUANTIZE(i, acc) \
    (end == FIXED ? REQUANTIZE_FIXED(acc, channel + 16 * VECTOR(i)) \
                  : conv_requantize(e, acc, p->scale + channel + 16 * VECTOR(i), RESIDUAL(i)))
#endif
#ifndef FIXED_POINT
#define REQUANTIZE(i, acc) conv_requantize(e, acc, p->scale + channel + 16 * VECTOR(i), RESIDUAL(i))
#endif
#define STORE_NUMBERS(i, acc) \
    if (i < used) \
        store_i(RESULT(i), acc, e->rest - 16 * VECTOR(i));
#define STORE_QUARTER(i, quarter) \
    if (i < used) \
        store_quarter(RESULT(i), bytes, quarter);
#define STORE_FEW(i, quarter) \
    if (i < used) \
        store_few(RESULT(i), bytes, quarter, e->rest - 16 * VECTOR(i));

/* Store accumulators `first` .. first + 3 of a tile, as far as it has them; with one store if they are adjacent in memory. */
INLINE void conv_store(const conv_params *p, const conv_rows *at, const conv_end *e, v16i a, v16i b, v16i c, v16i d,
                       int32_t first, int32_t channel, int32_t pixels, int32_t rows, int32_t vectors, int32_t end)
{
    const int32_t used = pixels * rows * vectors;
    const int32_t row = first + 3 < used && ROW(first) == ROW(first + 3);
    v64b bytes;

    if (end == NUMBERS) {
        STORE_NUMBERS(first, a)
        STORE_NUMBERS(first + 1, b)
        STORE_NUMBERS(first + 2, c)
        STORE_NUMBERS(first + 3, d)
        return;
    }
    bytes = round_64(REQUANTIZE(first, a), REQUANTIZE(first + 1, b), REQUANTIZE(first + 2, c), REQUANTIZE(first + 3, d));
    bytes = clamp_64(bytes, e->lo, e->hi);
    if (e->rest < 16 * vectors) {
        STORE_FEW(first, 0)
        STORE_FEW(first + 1, 1)
        STORE_FEW(first + 2, 2)
        STORE_FEW(first + 3, 3)
    } else if (row && (vectors == 4 || e->out_pixel == 16 * vectors)) {
        store_64(RESULT(first), bytes);
    } else if (row && vectors == 2) {
        store_half(RESULT(first), bytes, 0);
        store_half(RESULT(first + 2), bytes, 1);
    } else {
        STORE_QUARTER(first, 0)
        STORE_QUARTER(first + 1, 1)
        STORE_QUARTER(first + 2, 2)
        STORE_QUARTER(first + 3, 3)
    }
}

#define BEGIN(i) acc##i = load_i(p->bias + channel + 16 * VECTOR(i));
#define ADD(i) \
    if (i < used) \
        acc##i = dot(acc##i, load_word(from[ROW(i)] + PIXEL(i) * step), many[VECTOR(i)]);
#ifdef HAS_PAIRS
#define ADD_FEW_BITS(i) \
    if (i < used) \
        acc##i = dot_few_bits(acc##i, from[ROW(i)] + PIXEL(i) * step, w + 64 * VECTOR(i), bits);
#endif
/* The words of a window that are computed in one way, in the order of the list. */
#define EACH_WORD(arrangement, DO) \
    for (int32_t n = counts[arrangement]; n > 0; n--, next++) { \
        const weights some = arranged_weights(load_weights(w + *next * stride), arrangement % 3); \
        const int32_t from = p->starts[*next]; \
        EACH_ACCUMULATOR(DO) \
    }
#define WORD(i) load_word(at->x[ROW(i)] + PIXEL(i) * step + from)
#define ADD_FIRST(i) \
    if (i < used) \
        acc##i = dot_pairs(acc##i, WORD(i), some, 0);
#define ADD_SECOND(i) \
    if (i < used) \
        acc##i = dot_pairs(acc##i, WORD(i), some, 1);
#define ADD_THIRD(i) \
    if (i < used) \
        acc##i = dot_pairs(acc##i, WORD(i), some, 2);
#define ADD_EXACTLY(i) \
    if (i < used) \
        acc##i = dot(acc##i, WORD(i), some);
#define SUMMED(i) \
    if (i < used) \
        acc##i = summed(acc##i);
#define STORE(a, b, c, d) \
    if (a < used) \
        conv_store(p, at, &e, acc##a, acc##b, acc##c, acc##d, a, channel, pixels, rows, vectors, end);

/* A tile: `pixels` windows, `step` bytes apart, of each of `rows` rows, and 16 * `vectors` channels, whose weights of `bits`
 * bits for successive words are `stride` bytes apart. Runs have `words` words or, if that is 0, p->words. If `fetch` is set,
 * `ahead_step` bytes per word are prefetched, starting at `ahead`. All arguments but p, ahead_step and pointers are
 * compile-time constants. */
INLINE void conv_tile(const conv_params *p, const conv_rows *at, const int8_t *w, const int8_t *ahead, int32_t ahead_step,
                      int32_t channel, int32_t pixels, int32_t rows, int32_t vectors, int32_t step, int32_t stride,
                      int32_t words, int32_t fetch, int32_t bits, int32_t end)
{
    const int32_t used = pixels * rows * vectors, run = words > 0 ? words : p->words;
    v16i acc0, acc1, acc2, acc3, acc4, acc5, acc6, acc7, acc8, acc9, acc10, acc11;
    v16i acc12, acc13, acc14, acc15, acc16, acc17, acc18, acc19, acc20, acc21, acc22, acc23;
    conv_end e;

    EACH_ACCUMULATOR(BEGIN)
#ifdef HAS_PAIRS
    if (vectors == 1 && p->order != NULL) {
        const uint16_t *const counts = p->order + channel / 16 * (ARRANGEMENTS + p->segments * p->words);
        const uint16_t *next = counts + ARRANGEMENTS;

        EACH_WORD(0, ADD_FIRST)
        EACH_WORD(1, ADD_SECOND)
        EACH_WORD(2, ADD_THIRD)
        EACH_WORD(3, ADD_EXACTLY)
    } else
#endif
    for (int32_t s = 0; s < p->segments; s++) {
        const uint8_t *from[6];

        for (int32_t i = 0; i < rows; i++)
            from[i] = at->x[i] + p->segment[s];
        for (int32_t k = 0; k < run; k++, w += stride) {
#ifdef HAS_PAIRS
            if (bits < 8) {
                EACH_ACCUMULATOR(ADD_FEW_BITS)
                for (int32_t i = 0; i < rows; i++)
                    from[i] += 32 / bits;
            } else
#endif
            UNROLL
            for (int32_t part = 0; part < 4; part++) {
                weights many[4];

                if (part >= 8 / bits)
                    continue;
                many[0] = unpacked(load_weights(w), part, bits);
                if (vectors > 1)
                    many[1] = unpacked(load_weights(w + 64), part, bits);
                if (vectors > 2)
                    many[2] = unpacked(load_weights(w + 128), part, bits);
                if (vectors > 3)
                    many[3] = unpacked(load_weights(w + 192), part, bits);
                EACH_ACCUMULATOR(ADD)
                for (int32_t i = 0; i < rows; i++)
                    from[i] += 4;
            }
            if (fetch) {
                __builtin_prefetch(ahead);
                ahead += ahead_step;
            }
        }
    }
    EACH_ACCUMULATOR(SUMMED)
    e.zero = set_f(p->zero);
    e.residual_scale = set_f(p->residual_scale);
    e.lo = set_64(p->lo);
    e.hi = set_64(p->hi);
    e.rest = p->out_c - channel;
    e.out_pixel = p->out_pixel;
    e.residual_pixel = p->residual_pixel;
    EACH_FOUR(STORE)
}

#undef EACH_ACCUMULATOR
#undef EACH_FOUR
#undef VECTOR
#undef PIXEL
#undef ROW
#undef RESULT
#undef RESIDUAL
#undef REQUANTIZE
#ifdef FIXED_POINT
#undef REQUANTIZE_FIXED
#endif
#undef STORE_NUMBERS
#undef STORE_QUARTER
#undef STORE_FEW
#undef BEGIN
#undef ADD
#ifdef HAS_PAIRS
#undef ADD_FEW_BITS
#endif
#undef EACH_WORD
#undef WORD
#undef ADD_FIRST
#undef ADD_SECOND
#undef ADD_THIRD
#undef ADD_EXACTLY
#undef SUMMED
#undef STORE

/* A thread's part where the registers do not hold the tile: ACCUMULATORS successive pixels, which may be in different rows
 * and images, and 16 channels. The last pixel of the part fills the last tile. Arguments are those of conv_images. */
INLINE void conv_pixels(const conv_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y, int32_t count,
                        share part, int32_t vectors, int32_t step, int32_t words, int32_t bits, int32_t end)
{
    const int32_t stride = 64 * vectors, block_bytes = stride * p->segments * p->words;
    const int32_t groups = (p->out_c + 15) / 16, pixels = bits == 8 ? ACCUMULATORS : PACKED_ACCUMULATORS;
    const share whole = {0, 1}, of_rows = p->by_channels ? whole : part, of_groups = p->by_channels ? part : whole;
    const conv_part mine = conv_rows_of(p, count, of_rows, 1);
    const int32_t last = start_of(groups, next(of_groups));

    for (int32_t group = start_of(groups, of_groups); group < last && mine.first < mine.end; group++) {
        const int8_t *w = p->weight + group / vectors * block_bytes + group % vectors * 64;
        conv_start here = conv_row(p, x, residual, y, mine.first, end);
        int32_t row = mine.first, pixel = 0;

        while (row < mine.end) {
            conv_rows at;

            for (int32_t i = 0; i < pixels; i++) {
                at.x[i] = here.x;
                at.residual[i] = here.residual;
                at.y[i] = here.y;
                if (++pixel < p->out_w) {
                    here.x += step;
                    here.residual = end == JOINED ? here.residual + p->residual_pixel : NULL;
                    here.y += p->out_pixel;
                } else if (++row < mine.end) {
                    here = conv_row(p, x, residual, y, row, end);
                    pixel = 0;
                }
            }
            conv_tile(p, &at, w, w, 0, 16 * group, 1, pixels, 1, step, stride, words, 0, bits, end);
        }
    }
}

/* A thread's part of a block of images, one tile after the other: some rows, or some groups of channels. No two threads
 * write the same number. If a layer has few weights, all of them are read for each row of tiles, and
 * results are written line by line. If it has many, one group stays in the cache for all pixels of all images, and with
 * `fetch` the next group is prefetched meanwhile. A tile's rows may come from two images. A tile that would reach beyond
 * the right or the end of the part is moved back and computes some pixels again. */
INLINE void conv_images(const conv_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y, int32_t count,
                        share part, int32_t pixels, int32_t rows, int32_t vectors, int32_t step, int32_t words,
                        int32_t fetch, int32_t bits, int32_t end)
{
    const int32_t stride = 64 * vectors, block_bytes = stride * p->segments * p->words;
    const int32_t groups = (p->out_c + 16 * vectors - 1) / (16 * vectors);
    const share whole = {0, 1}, of_rows = p->by_channels ? whole : part, of_groups = p->by_channels ? part : whole;
    const conv_part mine = conv_rows_of(p, count, of_rows, rows);
    const int32_t first_channel = start_of(groups, of_groups) * 16 * vectors;
    const int32_t beyond = start_of(groups, next(of_groups)) * 16 * vectors;
    const int32_t end_channel = beyond < p->out_c ? beyond : p->out_c;
    const int32_t tiles = (mine.end - mine.first + rows - 1) / rows * ((p->out_w + pixels - 1) / pixels);
    const int32_t ahead_step = tiles > 0 ? (64 * vectors + tiles - 1) / tiles : 0;
    const int32_t near = (p->out_c + 15) / 16 * 64 * p->segments * p->words <= NEAR_BYTES;

    for (int32_t first = first_channel, last; first < end_channel; first = last) {
        const int8_t *ahead = p->weight + (first / (16 * vectors) + 1) * block_bytes;

        last = near ? end_channel : first + 16 * vectors;
        for (int32_t i = mine.first; i < mine.end; i += rows) {
            conv_start row[4];
            conv_rows at;

            for (int32_t r = 0; r < rows; r++)
                row[r] = conv_row(p, x, residual, y, (i + rows <= mine.end ? i : mine.end - rows) + r, end);
            for (int32_t c = first; c < last; c += 16 * vectors) {
                const int8_t *w = p->weight + c / (16 * vectors) * block_bytes + c % (16 * vectors) * 4;

                for (int32_t j = 0; j < p->out_w; j += pixels) {
                    const int32_t pixel = j + pixels <= p->out_w ? j : p->out_w - pixels;

                    for (int32_t r = 0; r < rows; r++) {
                        at.x[r] = row[r].x + pixel * step;
                        at.residual[r] = end == JOINED ? row[r].residual + pixel * p->residual_pixel : NULL;
                        at.y[r] = row[r].y + pixel * p->out_pixel;
                    }
                    conv_tile(p, &at, w, ahead, ahead_step, c, pixels, rows, vectors, step, stride, words, fetch, bits,
                              end);
                    ahead += ahead_step * p->segments * p->words;
                }
            }
        }
    }
}

#ifdef HAS_MATRICES
/* Where the pixels of a matrix are: the first of them in windows, residual and results, and its column. */
typedef struct {
    const uint8_t *x, *residual;
    uint8_t *y;
    int32_t column;
} conv_pixels_at;

/* The rows of an image that matrices cover one after the other, and the next pixel in them. */
typedef struct {
    int32_t row, rows, position;
} conv_band;

INLINE conv_band conv_band_from(const conv_params *p, int32_t row, conv_part mine)
{
    const int32_t image_end = (row / p->out_h + 1) * p->out_h, last = image_end < mine.end ? image_end : mine.end;
    const conv_band band = {row, p->row_pixels > 0 ? last - row : 1, 0};

    return band;
}

/* Pixels of so many rows with what is between them. */
INLINE int32_t conv_band_pixels(const conv_params *p, int32_t rows)
{
    return (rows - 1) * p->row_pixels + p->out_w;
}

/* The pixels of the next matrix. The last of a band is moved back and computes some pixels again. */
INLINE conv_pixels_at conv_next_pixels(const conv_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y,
                                       conv_band *band, conv_part mine, int32_t pixels, int32_t step, int32_t end)
{
    const int32_t length = conv_band_pixels(p, band->rows), last = length - pixels;
    const int32_t start = band->position < last ? band->position : last;
    const int32_t row = p->row_pixels > 0 ? start / p->row_pixels : 0, column = start - row * p->row_pixels;
    const conv_start here = conv_row(p, x, residual, y, band->row + row, end);
    const conv_pixels_at at = {here.x + column * step,
                               end == JOINED ? here.residual + column * p->residual_pixel : NULL,
                               here.y + column * p->out_pixel, column};

    band->position = start + pixels;
    if (band->position >= length)
        *band = conv_band_from(p, band->row + band->rows, mine);
    return at;
}

/* Products of one or two matrices of pixels and one or two of 16 channels. */
typedef struct {
    conv_pixels_at at[2];
    int32_t channel, two_a, two_b;
} conv_product;

/* The bytes of 64 sums: of `pixels` successive ones, at most 4 / `vectors`, and 16 * `vectors` channels. */
INLINE v64b conv_bytes(const conv_end *e, const int32_t *sums, v16f scale, v16f second, const uint8_t *residual,
                       int32_t pixels, int32_t vectors, int32_t end)
{
    v16f real[4];

    UNROLL
    for (int32_t k = 0; k < 4; k++) {
        const int32_t pixel = k / vectors < pixels ? k / vectors : 0, channel = k % vectors * 16;
        v16f zero = e->zero;

        if (end == JOINED)
            zero = mul_add(to_f(load_u8(residual + pixel * e->residual_pixel + channel, 16)), e->residual_scale, zero);
        real[k] = mul_add(to_f(load_i(sums + 32 * pixel + channel)), channel == 0 ? scale : second, zero);
    }
    return clamp_64(round_64(real[0], real[1], real[2], real[3]), e->lo, e->hi);
}

/* Store the sums of `count` successive pixels of a row, of 16 * `vectors` channels. */
INLINE void conv_store_pixels(const conv_end *e, const int32_t *sums, v16f scale, v16f second, const uint8_t *residual,
                              uint8_t *y, int32_t count, int32_t vectors, int32_t end)
{
    const int32_t together = 4 / vectors, few = e->rest < 16 * vectors;

    if (end == NUMBERS) {
        for (int32_t i = 0; i < count; i++)
            for (int32_t k = 0; k < vectors; k++)
                store_i(y + i * e->out_pixel + 64 * k, load_i(sums + 32 * i + 16 * k), e->rest - 16 * k);
        return;
    }
    for (; count >= together && !few; count -= together) {
        const v64b bytes = conv_bytes(e, sums, scale, second, residual, together, vectors, end);

        if (e->out_pixel == 16 * vectors) {
            store_64(y, bytes);
        } else if (vectors == 2) {
            store_half(y, bytes, 0);
            store_half(y + e->out_pixel, bytes, 1);
        } else {
            UNROLL
            for (int32_t k = 0; k < 4; k++)
                store_quarter(y + k * e->out_pixel, bytes, k);
        }
        sums += 32 * together;
        y += together * e->out_pixel;
        if (end == JOINED)
            residual += together * e->residual_pixel;
    }
    for (; count > 0; count--, sums += 32, y += e->out_pixel) { /* the rest of them, or a part of the channels */
        const v64b bytes = conv_bytes(e, sums, scale, second, residual, 1, vectors, end);

        store_few(y, bytes, 0, e->rest < 16 ? e->rest : 16);
        if (vectors == 2)
            store_few(y + 16, bytes, 1, e->rest - 16 < 16 ? e->rest - 16 : 16);
        if (end == JOINED)
            residual += e->residual_pixel;
    }
}

/* Turn the sums of a product into results. */
INLINE void conv_finish(const conv_params *p, const conv_product *product, const int32_t *sums, int32_t pixels,
                        int32_t vectors, int32_t end)
{
    const int32_t is_dense = p->row_pixels == p->out_w && p->out_row == p->out_w * p->out_pixel &&
                             (end != JOINED || p->residual_row == p->out_w * p->residual_pixel);
    const int32_t channel = product->channel, row_pixels = p->row_pixels, out_w = p->out_w;
#ifdef FIXED_POINT
    const v16f scale = end == NUMBERS ? set_f(0) : end == FIXED ? set_f(1.0f) : load_f(p->scale + channel, 16);
    const v16f second = end == NUMBERS || end == FIXED || vectors == 1 ? scale : load_f(p->scale + channel + 16, 16);
#endif
#ifndef FIXED_POINT
    const v16f scale = end == NUMBERS ? set_f(0) : load_f(p->scale + channel, 16);
    const v16f second = end == NUMBERS || vectors == 1 ? scale : load_f(p->scale + channel + 16, 16);
#endif
    const conv_end e = {set_f(p->zero), set_f(p->residual_scale), set_64(p->lo), set_64(p->hi),
                        p->out_c - channel, p->out_pixel, p->residual_pixel};

    for (int32_t t = 0; t <= product->two_a; t++, sums += 512) {
        const uint8_t *residual = end == JOINED ? product->at[t].residual + channel : NULL;
        uint8_t *y = product->at[t].y + channel * (end == NUMBERS ? 4 : 1);
        int32_t column = product->at[t].column;

        for (int32_t i = 0; i < pixels;) {
            const int32_t in_row = is_dense ? pixels : out_w - column, rest = pixels - i;
            const int32_t count = in_row < rest ? in_row : rest;

            if (count > 0)
                conv_store_pixels(&e, sums + 32 * i, scale, second, residual, y, count, vectors, end);
            i = count == rest ? pixels : i + row_pixels - column; /* over the border to the next row */
            y += p->out_row - column * e.out_pixel;
            if (end == JOINED)
                residual += p->residual_row - column * e.residual_pixel;
            column = 0;
        }
    }
}

/* Begin the sums and add all products of a window. After each step `ahead_lines` cache lines are prefetched. */
INLINE void conv_multiply(const conv_params *p, const conv_product *product, const int8_t *w0, const int8_t *w1,
                          const int8_t **ahead, int32_t ahead_lines, int32_t step, int32_t stride, int32_t bits,
                          int32_t two_a, int32_t two_b)
{
    const int32_t words = p->matrix_words, stored = words * bits / 8, listed = p->words == 1;
    const int32_t runs = listed ? stored : 1, steps = listed ? 1 : p->words / stored;

    begin_sums(p->bias + product->channel, two_a, two_b);
    for (int32_t s = 0; s < p->segments; s += runs) {
        const uint8_t *a0 = product->at[0].x + p->segment[s], *a1 = two_a ? product->at[1].x + p->segment[s] : a0;

        for (int32_t k = 0; k < steps; k++) {
            add_matrices(a0, a1, step, w0, w1, stride, words, bits, two_a, two_b);
            for (int32_t i = 0; i < ahead_lines; i++, *ahead += 64)
                __builtin_prefetch(*ahead, 0, 2);
            a0 += 4 * words;
            a1 += 4 * words;
            w0 += stored * stride;
            w1 += stored * stride;
        }
    }
}

/* Cache lines of weights to prefetch with each step, so that the next `channels` channels arrive while these are computed. */
INLINE int32_t conv_ahead_lines(const conv_params *p, conv_part mine, int32_t pixels, int32_t channels, int32_t bits)
{
    const int32_t words = p->segments * p->words;
    int32_t tiles = 0, steps;

    for (int32_t row = mine.first; row < mine.end;) {
        const conv_band band = conv_band_from(p, row, mine);

        tiles += (conv_band_pixels(p, band.rows) + pixels - 1) / pixels;
        row += band.rows;
    }
    steps = (tiles + 1) / 2 * ((channels + 31) / 32) * (words * 8 / bits / p->matrix_words);
    return (channels / 16 * words + steps - 1) / steps;
}

/* A thread's part of a block of images as products of matrices. If a layer has few weights, all of them are read for every
 * two matrices of pixels. Otherwise some channels are computed for all pixels, and the weights of the next ones are
 * prefetched meanwhile: matrices are multiplied faster than weights arrive without it. */
INLINE void conv_matrices(const conv_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y, int32_t count,
                          share part, int32_t vectors, int32_t step, int32_t bits, int32_t end)
{
    const int32_t stride = 64 * vectors, block_bytes = stride * p->segments * p->words;
    const int32_t groups = (p->out_c + 16 * vectors - 1) / (16 * vectors);
    const share whole = {0, 1}, of_rows = p->by_channels ? whole : part, of_groups = p->by_channels ? part : whole;
    const conv_part mine = conv_rows_of(p, count, of_rows, 1);
    const int32_t first_channel = start_of(groups, of_groups) * 16 * vectors;
    const int32_t beyond = start_of(groups, next(of_groups)) * 16 * vectors;
    const int32_t end_channel = beyond < p->out_c ? beyond : p->out_c;
    const int32_t near = (p->out_c + 15) / 16 * 64 * p->segments * p->words <= MATRICES_NEAR_BYTES;
    const int32_t together = near ? end_channel - first_channel : vectors == 1 ? 32 : 16 * vectors;
    int32_t sums[1024] __attribute__((aligned(64)));
    int32_t pixels = p->matrix_pixels, ahead_lines;

    if (mine.first >= mine.end || first_channel >= end_channel)
        return;
    for (int32_t row = mine.first; row < mine.end;) { /* a part of an image may have fewer pixels */
        const conv_band band = conv_band_from(p, row, mine);
        const int32_t length = conv_band_pixels(p, band.rows);

        pixels = length < pixels ? length : pixels;
        row = p->row_pixels > 0 ? row + band.rows : mine.end;
    }
    ahead_lines = near ? 0 : conv_ahead_lines(p, mine, pixels, together, bits);
    begin_matrices(pixels, p->matrix_words);
    for (int32_t first = first_channel; first < end_channel; first += together) {
        const int32_t channels_end = end_channel - first < together ? end_channel : first + together;
        conv_band band = conv_band_from(p, mine.first, mine);
        const int8_t *ahead = p->weight + (first + together) / 16 * 64 * p->segments * p->words;

        while (band.row < mine.end) {
            conv_product product;

            product.at[0] = conv_next_pixels(p, x, residual, y, &band, mine, pixels, step, end);
            product.two_a = band.row < mine.end;
            if (product.two_a)
                product.at[1] = conv_next_pixels(p, x, residual, y, &band, mine, pixels, step, end);
            for (int32_t c = first; c < channels_end; c += 32) {
                const int32_t v = c / 16;
                const int8_t *w0 = p->weight + v / vectors * block_bytes + v % vectors * 64;
                const int8_t *w1 = p->weight + (v + 1) / vectors * block_bytes + (v + 1) % vectors * 64;

                product.channel = c;
                product.two_b = c + 16 < channels_end;
                if (product.two_a && product.two_b)
                    conv_multiply(p, &product, w0, w1, &ahead, ahead_lines, step, stride, bits, 1, 1);
                else if (product.two_b)
                    conv_multiply(p, &product, w0, w1, &ahead, ahead_lines, step, stride, bits, 0, 1);
                else if (product.two_a)
                    conv_multiply(p, &product, w0, w0, &ahead, ahead_lines, step, stride, bits, 1, 0);
                else
                    conv_multiply(p, &product, w0, w0, &ahead, ahead_lines, step, stride, bits, 0, 0);
                store_sums(sums, product.two_a, product.two_b);
#ifdef FIXED_POINT
                for (int32_t t = 0; end == FIXED && t <= product.two_a; t++)
                    for (int32_t i = 0; i < pixels; i++)
                        for (int32_t h = 0; h <= product.two_b; h++) {
                            int32_t *const sum = sums + 512 * t + 32 * i + 16 * h;
                            const int32_t first = product.channel + 16 * h;

                            store_i((uint8_t *)sum, fixed_16(load_i(sum), p->mantissa + first, p->exponent + first), 16);
                        }
#endif
                if (product.two_b)
                    conv_finish(p, &product, sums, pixels, 2, end);
                else
                    conv_finish(p, &product, sums, pixels, 1, end);
            }
        }
    }
    end_matrices();
}

/* Once for each form of the results. */
#define CONV_MATRICES(name, end) \
    KERNEL void name(const conv_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y, int32_t count, \
                     share part, int32_t vectors, int32_t step, int32_t bits) \
    { \
        conv_matrices(p, x, residual, y, count, part, vectors, step, bits, end); \
    }

CONV_MATRICES(ISA(conv_to_numbers), NUMBERS)
CONV_MATRICES(ISA(conv_to_bytes), BYTES)
CONV_MATRICES(ISA(conv_to_joined), JOINED)
#ifdef FIXED_POINT
CONV_MATRICES(ISA(conv_to_fixed), FIXED)
#endif
#undef CONV_MATRICES

#endif

/* Compute a layer by matrices, if that is faster on this instruction set. Returns whether it is. */
INLINE int conv_by_matrices(const conv_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y, int32_t count,
                            share part, int32_t vectors, int32_t step, int32_t bits, int32_t end)
{
#ifdef HAS_MATRICES
    if (p->matrix_words == 0)
        return 0;
    if (end == NUMBERS)
        ISA(conv_to_numbers)(p, x, residual, y, count, part, vectors, step, bits);
    else if (end == BYTES)
        ISA(conv_to_bytes)(p, x, residual, y, count, part, vectors, step, bits);
#ifdef FIXED_POINT
    else if (end == FIXED)
        ISA(conv_to_fixed)(p, x, residual, y, count, part, vectors, step, bits);
#endif
    else
        ISA(conv_to_joined)(p, x, residual, y, count, part, vectors, step, bits);
    return 1;
#else
    (void)p, (void)x, (void)residual, (void)y, (void)count, (void)part, (void)vectors, (void)step, (void)bits, (void)end;
    return 0;
#endif
}

/* A kernel for one shape of tile. */
#define CONV(name, pixels, rows, vectors, step, words, fetch, bits, end) \
    KERNEL void name(const conv_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y, int32_t count, share part) \
    { \
        if (conv_by_matrices(p, x, residual, y, count, part, vectors, step, bits, end)) \
            return; \
        if (pixels * rows * vectors <= ACCUMULATORS) \
            conv_images(p, x, residual, y, count, part, pixels, rows, vectors, step, words, fetch, bits, end); \
        else \
            conv_pixels(p, x, residual, y, count, part, vectors, step, words, bits, end); \
    }
