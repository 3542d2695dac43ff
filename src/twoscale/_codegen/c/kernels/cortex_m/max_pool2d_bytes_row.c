/* One row of maxima over windows, equation (9), four channels at a time with the DSP extension. Taps outside the image are
 * left out. The result may take the place of x. */
static void max_pool2d_bytes_row(const max_pool2d_params *p, const kept_rows *x, uint8_t *y, int32_t row)
{
    for (int32_t out_column = 0; out_column < p->out_w; out_column++) {
        const int32_t left = out_column * p->stride_w - p->pad_left;

        for (int32_t channel = 0; channel < p->channels; channel += 4) {
            const int32_t count = p->channels - channel < 4 ? p->channels - channel : 4;
            uint32_t best = 0;

            for (int32_t ky = 0; ky < p->kernel_h; ky++) {
                const int32_t in_row = row * p->stride_h - p->pad_top + ky * p->dilation_h;
                const uint8_t *from;

                if (in_row < 0 || in_row >= p->in_h)
                    continue;
                from = row_of(x, in_row) + channel;
                for (int32_t kx = 0; kx < p->kernel_w; kx++) {
                    const int32_t column = left + kx * p->dilation_w;

                    if (column >= 0 && column < p->in_w)
                        best = larger_bytes(best, some_bytes(from + column * p->channels, count));
                }
            }
            for (int32_t i = 0; i < count; i++)
                *y++ = (uint8_t)(best >> 8 * i);
        }
    }
}
