/* Means of values, weighted by a softmax of scores, equation (16). */
typedef struct {
    int32_t matrices, rows, inner, columns;
    int32_t scores_step[3]; /* to the next matrix, row and inner element */
    int32_t values_step[3]; /* to the next matrix, inner element and column */
    int32_t y_step[3];      /* to the next matrix, row and column */
    int32_t values_zero;
    const uint16_t *table; /* [256]; the first entry is the largest */
    int32_t multiplier, zero, lo, hi;
} softmax_matmul_params;

static void softmax_matmul(const softmax_matmul_params *p, const uint8_t *scores, const uint8_t *values, uint8_t *y)
{
    for (int32_t i = 0; i < p->matrices; i++) {
        for (int32_t j = 0; j < p->rows; j++) {
            const uint8_t *row = scores + i * p->scores_step[0] + j * p->scores_step[1];
            int64_t total = 0;
            int32_t top = 0;

            for (int32_t l = 0; l < p->inner; l++)
                if (row[l * p->scores_step[2]] > top)
                    top = row[l * p->scores_step[2]];
            for (int32_t l = 0; l < p->inner; l++)
                total += p->table[top - row[l * p->scores_step[2]]];
            for (int32_t k = 0; k < p->columns; k++) {
                const uint8_t *column = values + i * p->values_step[0] + k * p->values_step[2];
                int32_t acc = 0;
                int64_t q;

                for (int32_t l = 0; l < p->inner; l++)
                    acc += (int32_t)p->table[top - row[l * p->scores_step[2]]] *
                           (column[l * p->values_step[1]] - p->values_zero);
                q = p->zero + rne_ratio((int64_t)acc * p->multiplier, total * 65536);
                y[i * p->y_step[0] + j * p->y_step[1] + k * p->y_step[2]] =
                    (uint8_t)(q < p->lo ? p->lo : q > p->hi ? p->hi : q);
            }
        }
    }
}
