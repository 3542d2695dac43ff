/* One row of a convolution with Helium. */
static void conv2d_helium_row(const conv2d_helium_params *p, const kept_rows *x, const kept_rows *residual, uint8_t *y,
                              int32_t row)
{
    helium_rows kept;

    helium_begin(p, row, &kept);
    conv2d_helium_kept(p, x, residual == NULL ? NULL : row_of(residual, row), y, row, &kept);
}
