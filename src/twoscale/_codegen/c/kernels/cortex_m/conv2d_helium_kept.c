/* A row of a convolution with Helium, equations (2) and (3); with a residual (2) and (7b). Rows of x are kept as signed
 * bytes, with the taps outside the image. */
typedef struct {
    int8_t bytes[HELIUM_ROWS_BYTES]; /* row r of x is kept in place r % kernel_h; a row outside the image follows them */
    int32_t next;                    /* row of x to be read */
} helium_rows;

/* Keep a row of x, or one outside the image if x is NULL. */
static void helium_keep(const conv2d_helium_params *p, const uint8_t *x, int8_t *to)
{
    const int32_t columns = p->columns > 0 ? p->columns : (p->row_bytes - 16) / p->in_c;
    const int32_t fit = columns - p->pad_left, count = x == NULL ? 0 : p->in_w < fit ? p->in_w : fit;
    const int32_t bytes = p->columns > 0 ? 16 : p->in_c, before = p->pad_left * bytes, after = before + count * bytes;

    for (int32_t i = 0; i < p->in_c; i += bytes, to += columns * bytes) {
        helium_fill(to, before, p->in_zero - 128);
        if (count > 0 && p->columns > 0)
            helium_columns_of(x + i, count, p->in_c, to + before);
        else if (count > 0)
            helium_bytes(x, after - before, to + before);
        helium_fill(to + after, columns * bytes - after, p->in_zero - 128);
    }
}

/* Copy four windows. */
static WITH_HELIUM void helium_copy_windows(const conv2d_helium_params *p, const int8_t *const *places, int32_t column,
                                            int8_t *windows)
{
    const int32_t run = p->kernel_w * p->in_c, apart = p->stride_w * p->in_c;

    for (int32_t k = 0; k < p->kernel_h; k++) {
        const int8_t *x = places[k] + column * apart;
        int8_t *to = windows + k * run;

        for (int32_t left = run; left > 0; left -= 16, x += 16, to += 16) {
            helium_copy(x, to);
            helium_copy(x + apart, to + HELIUM_WINDOW);
            helium_copy(x + 2 * apart, to + 2 * HELIUM_WINDOW);
            helium_copy(x + 3 * apart, to + 3 * HELIUM_WINDOW);
        }
    }
}

/* Begin with the row of x that is needed first. */
static void helium_begin(const conv2d_helium_params *p, int32_t row, helium_rows *kept)
{
    kept->next = row * p->stride_h < p->pad_top ? 0 : row * p->stride_h - p->pad_top;
    if (p->row_bytes > 0)
        helium_keep(p, NULL, kept->bytes + p->kernel_h * p->row_bytes);
}

/* Write the outputs of tiles, whose sums begin at `sums`, from a column on. */
static void helium_write(const conv2d_helium_params *p, const int32_t *sums, int32_t tiles, int32_t column, uint8_t *y,
                         const uint8_t *joins)
{
    const int32_t item = p->to.multiplier == NULL ? 4 : 1, even = p->out_c + (p->out_c & 1);
    uint8_t some[HELIUM_OUTPUTS], joined[HELIUM_OUTPUTS];

    for (int32_t done; tiles > 0; tiles -= done, column += 4 * done, sums += 4 * even * done) {
        const int32_t pixels = p->out_w - column < 4 * tiles ? p->out_w - column : 4 * tiles;
        const int32_t whole = pixels >= 4 && even == p->out_c, last = pixels < 4 ? pixels : 4;
        uint8_t *const all = y + item * column * p->out_c, *const to = whole ? all : some;
        const uint8_t *from = joins == NULL ? NULL : joins + column * p->out_c;

        done = whole ? pixels >> 2 : 1;
        if (!whole && joins != NULL) {
            memset(joined, 0, sizeof joined);
            for (int32_t i = 0; i < last; i++)
                memcpy(joined + i * even, from + i * p->out_c, (size_t)p->out_c);
            from = joined;
        }
        HELIUM_STORE(p, sums, done, to, from, item * even);
        for (int32_t i = 0; !whole && i < last; i++)
            memcpy(all + item * i * p->out_c, some + item * i * even, (size_t)(item * p->out_c));
    }
}

static void conv2d_helium_kept(const conv2d_helium_params *p, const kept_rows *x, const uint8_t *joins, uint8_t *y, int32_t row,
                               helium_rows *kept)
{
    const int32_t top = row * p->stride_h - p->pad_top, single = p->kernel_h * p->kernel_w == 1;
    const int32_t of_tile = 4 * (p->out_c + (p->out_c & 1)), most = HELIUM_SUMS / of_tile;
    const uint8_t *const x_row = single ? row_of(x, top) : NULL;
    const int8_t *places[HELIUM_PLACES];
    int8_t windows[4 * HELIUM_WINDOW];
    int32_t sums[HELIUM_SUMS], count = 0;

    for (; !single && kept->next < top + p->kernel_h && kept->next < p->in_h; kept->next++)
        helium_keep(p, row_of(x, kept->next), kept->bytes + kept->next % p->kernel_h * p->row_bytes);
    for (int32_t k = 0; !single && k < p->kernel_h; k++) {
        const int32_t place = top + k < 0 || top + k >= p->in_h ? p->kernel_h : (top + k) % p->kernel_h;

        places[count++] = kept->bytes + place * p->row_bytes;
        for (int32_t i = 16; p->columns > 0 && i < p->in_c; i += 16, count++)
            places[count] = places[count - 1] + 16 * p->columns;
    }
    for (int32_t column = 0, tiles; column < p->out_w; column += 4 * tiles) {
        const int32_t left = (p->out_w - column + 3) >> 2;

        tiles = left < most ? left : most;
        if (p->columns > 0 && p->stride_w == 1)
            helium_columns(p, places, tiles, sums);
        else if (p->columns > 0)
            helium_columns_apart(p, places, tiles, sums);
        for (int32_t tile = 0; p->columns == 0 && tile < tiles; tile++) {
            const int32_t first = column + 4 * tile;

            if (!single)
                helium_copy_windows(p, places, first, windows);
            for (int32_t i = 0; single && i < 4; i++) {
                const int32_t at = first + i < p->out_w ? first + i : p->out_w - 1;

                helium_bytes(x_row + at * p->stride_w * p->in_c, p->in_c, windows + i * HELIUM_WINDOW);
            }
            helium_windows(windows, p, sums + tile * of_tile);
        }
        helium_write(p, sums, tiles, column, y, joins);
    }
}
