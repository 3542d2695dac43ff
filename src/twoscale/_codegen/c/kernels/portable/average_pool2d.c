/* Mean over windows, one row after the other. */
static void average_pool2d(const average_pool2d_params *p, const uint8_t *x, uint8_t *y)
{
    const int32_t y_bytes = p->out_w * p->channels * (p->to.multiplier == NULL ? 4 : 1);
    const kept_rows from = {x, p->in_h, p->in_w * p->channels};

    for (int32_t row = 0; row < p->out_h; row++)
        average_pool2d_row(p, &from, y + row * y_bytes, row);
}
