/* One row of maxima over windows, equation (9); taps outside the image are ignored. */
static void max_pool2d_row(const max_pool2d_params *p, const kept_rows *x, uint8_t *y, int32_t row)
{
    int32_t index = 0;

    for (int32_t out_column = 0; out_column < p->out_w; out_column++) {
        for (int32_t channel = 0; channel < p->channels; channel++, index++) {
            uint8_t best = 0;

            for (int32_t ky = 0; ky < p->kernel_h; ky++) {
                const int32_t in_row = row * p->stride_h - p->pad_top + ky * p->dilation_h;

                if (in_row < 0 || in_row >= p->in_h)
                    continue;
                for (int32_t kx = 0; kx < p->kernel_w; kx++) {
                    const int32_t column = out_column * p->stride_w - p->pad_left + kx * p->dilation_w;

                    if (column >= 0 && column < p->in_w) {
                        const uint8_t q = row_of(x, in_row)[column * p->channels + channel];

                        best = q > best ? q : best;
                    }
                }
            }
            y[index] = best;
        }
    }
}
