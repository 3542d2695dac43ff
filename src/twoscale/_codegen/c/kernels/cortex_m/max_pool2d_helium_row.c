/* One row of maxima over windows, equation (9), 16 channels at a time with Helium. Taps outside the image are left out. The
 * result may take the place of x. */
static WITH_HELIUM void max_pool2d_helium_row(const max_pool2d_params *p, const kept_rows *x, uint8_t *y, int32_t row)
{
    for (int32_t out_column = 0; out_column < p->out_w; out_column++) {
        const int32_t left = out_column * p->stride_w - p->pad_left;

        for (int32_t channel = 0; channel < p->channels; channel += 16) {
            const int32_t count = p->channels - channel < 16 ? p->channels - channel : 16;
#if HAVE_HELIUM
            const mve_pred16_t which = vctp8q((uint32_t)count);
            uint8x16_t best = vdupq_n_u8(0);
#else
            uint8_t best[16] = {0};
#endif

            for (int32_t ky = 0; ky < p->kernel_h; ky++) {
                const int32_t in_row = row * p->stride_h - p->pad_top + ky * p->dilation_h;
                const uint8_t *from;

                if (in_row < 0 || in_row >= p->in_h)
                    continue;
                from = row_of(x, in_row) + channel;
                for (int32_t kx = 0; kx < p->kernel_w; kx++) {
                    const int32_t column = left + kx * p->dilation_w;

                    if (column < 0 || column >= p->in_w)
                        continue;
#if HAVE_HELIUM
                    best = vmaxq_u8(best, vldrbq_z_u8(from + column * p->channels, which));
#else
                    for (int32_t i = 0; i < count; i++)
                        best[i] = from[column * p->channels + i] > best[i] ? from[column * p->channels + i] : best[i];
#endif
                }
            }
#if HAVE_HELIUM
            vstrbq_p_u8(y, best, which);
#else
            memcpy(y, best, (size_t)count);
#endif
            y += count;
        }
    }
}
