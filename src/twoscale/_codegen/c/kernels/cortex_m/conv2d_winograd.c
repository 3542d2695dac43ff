/* The rows of a group's pixels. */
static void winograd_rows(const conv2d_halves_params *p, const uint8_t *x, int32_t top, int32_t left, uint8_t *edge,
                          const uint8_t *rows[4])
{
    for (int32_t k = 0; k < 4; k++, edge += 10 * p->in_c) {
        rows[k] = edge;
        if (top + k < 0 || top + k >= p->in_h)
            memset(edge, p->in_zero, (size_t)(10 * p->in_c));
        else
            rows[k] = row_with_edges(p, x + (top + k) * p->in_w * p->in_c, left, 10, edge);
    }
}

/* Write the sums of a group for two channels, those of `rows` rows and `pixels` columns, which are inside the output and begin
 * at an index. */
static INLINED void winograd_store(const conv2d_halves_params *p, uint8_t *y, const uint8_t *residual, int32_t index,
                                   int32_t rows, int32_t pixels, int32_t channel, const int32_t *sums)
{
    const int32_t channels = channel + 1 < p->out_c ? 2 : 1;

    for (; rows > 0; rows--) {
        const uint8_t *const joins = residual == NULL ? NULL : residual + index;

        if (p->clamp_bits > 0 && channels == 2)
            halves_store_two(p, y + index, joins, channel, sums, 2 * pixels);
        else
            halves_store(p, y + (p->to.multiplier == NULL ? 4 : 1) * index, joins, channel, pixels, channels, sums);
        index += p->out_w * p->out_c;
        sums += 16;
    }
}

/* Convolution with 3 x 3 weights and a stride of 1 by Winograd's F(2x2, 3x3). In the parameters, `words` are those of one of
 * 16 positions, weights are [out_c / 2, rounded up][16][words][2], transformed, and biases are four times as large. */
static void conv2d_winograd(const conv2d_halves_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y)
{
    uint8_t edge[WINOGRAD_EDGE_BYTES];
    int32_t inputs[WINOGRAD_WORDS], products[16 * 8], sums[2 * 16];
    const uint8_t *rows[4];

    for (int32_t row = 0; row < p->out_h; row += 2)
        for (int32_t column = 0; column < p->out_w; column += 8) {
            const int32_t height = p->out_h - row < 2 ? 1 : 2, width = p->out_w - column < 8 ? p->out_w - column : 8;
            const int32_t first = (row * p->out_w + column) * p->out_c;
            const int32_t *w = p->weight;

            winograd_rows(p, x, row - p->pad_top, column - p->pad_left, edge, rows);
            winograd_inputs(rows, p->in_c, inputs);
            for (int32_t channel = 0; channel < p->out_c; channel += 2, w += 32 * p->words) {
                if (p->words == 8)
                    winograd_products_16(inputs, w, products);
                else
                    winograd_products(inputs, w, p->words, products);
                winograd_outputs(products, p->bias + channel, sums);
                winograd_store(p, y, residual, first + channel, height, width, channel, sums);
            }
        }
}
