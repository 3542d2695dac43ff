/* One row of a convolution with the DSP extension, equations (2) and (3); with a residual (2) and (7b). Tiles have four
 * windows and two channels. Windows at an edge are copied, and their taps outside the image filled with the zero point. */
/* The widened bytes of one window, or of four with their words in pairs. */
typedef union {
    int32_t words[HALVES_WORDS];
    uint64_t pairs[HALVES_WORDS / 2];
} widened;

static uint64_t paired(uint32_t low, uint32_t high)
{
    return low | (uint64_t)high << 32;
}

/* Widen the rows of four windows, which begin `apart` bytes apart, and add zeros up to `end`. */
static IN_REGISTERS void widen_four(const uint8_t *const *rows, int32_t count, int32_t run, int32_t apart, uint64_t *x,
                                    const uint64_t *end)
{
    const uint32_t even = even_bytes;

    for (int32_t k = 0; k < count; k++) {
        const uint8_t *a = rows[k], *b = a + apart, *c = b + apart, *d = c + apart;

        for (int32_t n = run >> 2; n > 0; n--, a += 4, b += 4, c += 4, d += 4, x += 4) {
            const uint32_t at_a = four_bytes(a), at_b = four_bytes(b), at_c = four_bytes(c), at_d = four_bytes(d);

            x[0] = paired(at_a & even, at_b & even);
            x[1] = paired(at_c & even, at_d & even);
            x[2] = paired(at_a >> 8 & even, at_b >> 8 & even);
            x[3] = paired(at_c >> 8 & even, at_d >> 8 & even);
        }
        for (int32_t n = run & 3, i = 0; i < n; i += 2, x += 2) {
            const uint32_t both = i + 1 < n ? 65536u : 0u;
            const int32_t next = i + 1 < n ? i + 1 : i;

            x[0] = paired(a[i] | a[next] * both, b[i] | b[next] * both);
            x[1] = paired(c[i] | c[next] * both, d[i] | d[next] * both);
        }
    }
    while (x != end)
        *x++ = 0;
}

/* The sums of one window or four, in parts of at most `part` words. */
static void halves_sums(const conv2d_halves_params *p, const widened *x, int32_t windows, int32_t channel, int32_t sums[8])
{
    const int32_t *const w = p->weight + channel / 2 * p->words;
    const int32_t none[2] = {0, 0}, *bias = p->bias + channel;

    for (int32_t i = 0; i < 8; i++)
        sums[i] = 0;
    for (int32_t k = 0; k < p->words; k += p->part) {
        const int32_t count = p->words - k < p->part ? p->words - k : p->part;
        int32_t sums_of_part[8];

        if (windows == 4)
            halves_tile(x->pairs + 2 * k, w + k, count, bias, sums_of_part);
        else
            halves_window(x->words + k, w + k, count, bias, sums_of_part);
        for (int32_t i = 0; i < 2 * windows; i++)
            sums[i] += sums_of_part[i];
        bias = none;
    }
}

/* All channels of four windows, two at a time, of a layer whose sums may be clamped and need no parts. */
static void halves_channels(const conv2d_halves_params *p, const widened *x, uint8_t *y, const uint8_t *joins)
{
    const int32_t *w = p->weight;

    for (int32_t channel = 0; channel + 1 < p->out_c; channel += 2, w += p->words) {
        int32_t sums[8];

        halves_tile(x->pairs, w, p->words, p->bias + channel, sums);
        halves_store_two(p, y + channel, joins, channel, sums, 8);
        if (joins != NULL)
            joins += 2;
    }
}

static void conv2d_halves_row(const conv2d_halves_params *p, const kept_rows *x, const kept_rows *residual, uint8_t *y,
                              int32_t row)
{
    const uint8_t *const joins = residual == NULL ? NULL : row_of(residual, row);
    const int32_t run = p->kernel_w * p->in_c, apart = p->stride_w * p->in_c, span = run + 3 * apart;
    uint8_t edge[HALVES_EDGE_BYTES];
    const int32_t item = p->to.multiplier == NULL ? 4 : 1;
    const int32_t direct = p->clamp_bits > 0 && p->words <= p->part;
    widened taps;
    const uint8_t *inside[HALVES_ROWS] = {NULL}, *rows[HALVES_ROWS] = {NULL};

    for (int32_t k = 0; k < p->kernel_h; k++) {
        const int32_t in_row = row * p->stride_h - p->pad_top + k * p->dilation_h;

        inside[k] = in_row < 0 || in_row >= p->in_h ? NULL : row_of(x, in_row);
        if (inside[k] == NULL)
            memset(edge + k * span, p->in_zero, (size_t)span);
    }
    for (int32_t column = 0, pixels; column < p->out_w; column += pixels) {
        const int32_t windows = column + 1 == p->out_w ? 1 : 4;
        const int32_t left = column * p->stride_w - p->pad_left, width = p->kernel_w + (windows - 1) * p->stride_w;

        pixels = p->out_w - column < windows ? p->out_w - column : windows;
        for (int32_t k = 0; k < p->kernel_h; k++) {
            uint8_t *const copy = edge + k * span;

            rows[k] = inside[k] == NULL ? copy : row_with_edges(p, inside[k], left, width, copy);
        }
        if (windows == 4) {
            widen_four(rows, p->kernel_h, run, apart, taps.pairs, taps.pairs + 2 * p->words);
        } else {
            int32_t *word = taps.words;

            for (int32_t k = 0; k < p->kernel_h; k++)
                word = widen(rows[k], run, word);
            while (word != taps.words + p->words)
                *word++ = 0;
        }
        if (direct && pixels == 4)
            halves_channels(p, &taps, y + column * p->out_c, joins == NULL ? NULL : joins + column * p->out_c);
        for (int32_t channel = direct && pixels == 4 ? p->out_c & ~1 : 0; channel < p->out_c; channel += 2) {
            const int32_t index = column * p->out_c + channel;
            int32_t sums[8];

            halves_sums(p, &taps, windows, channel, sums);
            halves_store(p, y + item * index, joins == NULL ? NULL : joins + index, channel, pixels,
                         channel + 1 < p->out_c ? 2 : 1, sums);
        }
    }
}
