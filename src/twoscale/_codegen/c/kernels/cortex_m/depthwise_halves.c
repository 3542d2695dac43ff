/* Depthwise convolution with the DSP extension, one row after the other. */
static void depthwise_halves(const depthwise_halves_params *p, const uint8_t *x, uint8_t *y)
{
    const int32_t y_bytes = p->out_w * p->channels * (p->to.multiplier == NULL ? 4 : 1);
    const kept_rows from = {x, p->in_h, p->in_w * p->channels};

    for (int32_t row = 0; row < p->out_h; row++)
        depthwise_halves_row(p, &from, y + row * y_bytes, row);
}
