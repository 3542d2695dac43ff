/* One row of a convolution in tiles of two pixels and two channels, equations (2) and (3); with a residual (2) and (7b).
 * Each loaded activation and each loaded weight is used twice. Bytes are multiplied without subtracting the zero point,
 * because the biases account for it. Windows at an edge are copied, and their taps outside the image filled with the zero
 * point. */
/* The accumulators of two windows, whose rows are `apart` bytes apart, and of two channels, or one twice if it is the last.
 */
static void conv2d_sums(const conv2d_params *p, const uint8_t *const *rows, int32_t apart, int32_t channel,
                        int32_t sums[4])
{
    const int32_t run = p->kernel_w * p->in_c, next = channel + 1 < p->out_c ? 1 : 0;

    sums[0] = sums[2] = p->bias[channel];
    sums[1] = sums[3] = p->bias[channel + next];
#ifdef CONV2D_TILE_4
    if (p->weight_bits == 4) {
        conv2d_tile_4(rows, p->kernel_h, run, apart, p->weight + channel / 2 * p->kernel_h * run, sums);
        return;
    }
#endif
#ifdef CONV2D_TILE_2
    if (p->weight_bits == 2) {
        conv2d_tile_2(rows, p->kernel_h, run, apart, p->weight + channel / 2 * p->kernel_h * ((run + 1) / 2), sums);
        return;
    }
#endif
#ifdef CONV2D_TILE
    conv2d_tile(rows, p->kernel_h, run, apart, p->weight + channel * p->kernel_h * run, next * p->kernel_h * run, sums);
#endif
}

/* Write the sums of a tile of `pixels` and `channels` as store does. A residual, if any, is at the same index. */
static void conv2d_store(const conv2d_params *p, uint8_t *y, const uint8_t *joins, int32_t channel, int32_t pixels,
                         int32_t channels, const int32_t sums[4])
{
#ifdef FIXED_POINT
    if (p->to.exponent != NULL) {
        for (int32_t j = 0; j < channels; j++)
            for (int32_t i = 0; i < pixels; i++)
                y[i * p->out_c + j] = requantize_fixed(&p->to, sums[2 * i + j], channel + j);
        return;
    }
#endif
    for (int32_t j = 0; j < channels; j++, y++) {
        const int32_t multiplier = multiplier_of(&p->to, channel + j);

        for (int32_t i = 0; i < pixels; i++) {
            int64_t value = (int64_t)sums[2 * i + j] * multiplier;

            if (joins != NULL)
                value += (int64_t)(joins[i * p->out_c + j] - p->residual_zero) * p->residual_multiplier;
            y[i * p->out_c] = requantize(&p->to, value);
        }
    }
}

/* The same for a whole tile of a narrow layer. */
static void conv2d_store_narrow(const conv2d_params *p, uint8_t *y, const uint8_t *joins, int32_t channel,
                                const int32_t sums[4])
{
    const int32_t shift = p->to.shift, almost_half = ((int32_t)1 << (shift - 1)) - 1;
    const int32_t zero = p->to.zero, lo = p->to.lo, hi = p->to.hi;

    for (int32_t i = 0; i < 2; i++, y += p->out_c) {
        int32_t left = sums[2 * i] * multiplier_of(&p->to, channel);
        int32_t right = sums[2 * i + 1] * multiplier_of(&p->to, channel + 1);

        if (joins != NULL) {
            left += (joins[0] - p->residual_zero) * p->residual_multiplier;
            right += (joins[1] - p->residual_zero) * p->residual_multiplier;
            joins += p->out_c;
        }
        left = zero + ((left + almost_half + ((left >> shift) & 1)) >> shift);
        right = zero + ((right + almost_half + ((right >> shift) & 1)) >> shift);
        y[0] = (uint8_t)(left < lo ? lo : left > hi ? hi : left);
        y[1] = (uint8_t)(right < lo ? lo : right > hi ? hi : right);
    }
}

static void conv2d_tiles_row(const conv2d_params *p, const kept_rows *x, const kept_rows *residual, uint8_t *y, int32_t row)
{
    const uint8_t *const joins = residual == NULL ? NULL : row_of(residual, row);
    const int32_t run = p->kernel_w * p->in_c;
    const int32_t apart = p->stride_w * p->in_c, span = run + apart; /* of the rows of two windows */
    uint8_t edge[TILE_BYTES];
    const int32_t height = p->kernel_h;
    const uint8_t *inside[TILE_ROWS], *rows[TILE_ROWS];

    for (int32_t k = 0; k < height; k++) {
        const int32_t in_row = row * p->stride_h - p->pad_top + k * p->dilation_h;

        inside[k] = in_row < 0 || in_row >= p->in_h ? NULL : row_of(x, in_row);
        if (inside[k] == NULL)
            memset(edge + k * span, p->in_zero, (size_t)span);
    }
    for (int32_t column = 0; column < p->out_w; column += 2) {
        const int32_t pixels = column + 1 < p->out_w ? 2 : 1;
        const int32_t left = column * p->stride_w - p->pad_left, width = p->kernel_w + (pixels - 1) * p->stride_w;
        const int32_t before = left < 0 ? (-left < width ? -left : width) : 0;
        const int32_t beyond = left + width - p->in_w, after = beyond > 0 ? (beyond < width ? beyond : width) : 0;
        const int32_t at_edge = before + after > 0;

        for (int32_t k = 0; k < height; k++) {
            uint8_t *const copy = edge + k * span;

            rows[k] = inside[k] == NULL || at_edge ? copy : inside[k] + left * p->in_c;
            if (inside[k] == NULL || !at_edge)
                continue;
            memset(copy, p->in_zero, (size_t)span);
            if (before + after < width)
                memcpy(copy + before * p->in_c, inside[k] + (left + before) * p->in_c,
                       (size_t)((width - before - after) * p->in_c));
        }
        for (int32_t channel = 0; channel < p->out_c; channel += 2) {
            const int32_t next = channel + 1 < p->out_c ? 1 : 0, index = column * p->out_c + channel;
            int32_t sums[4];

            conv2d_sums(p, rows, pixels == 2 ? apart : 0, channel, sums);
            if (p->to.multiplier == NULL)
                for (int32_t i = 0; i < 2 * pixels; i += 2 - next)
                    memcpy(y + 4 * (index + i / 2 * p->out_c + (i & 1)), sums + i, 4);
            else if (p->to.is_narrow && pixels == 2 && next)
                conv2d_store_narrow(p, y + index, joins == NULL ? NULL : joins + index, channel, sums);
            else
                conv2d_store(p, y + index, joins == NULL ? NULL : joins + index, channel, pixels, 1 + next, sums);
        }
    }
}
