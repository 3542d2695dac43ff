/* Products of matrices of activations, equation (14). */
typedef struct {
    int32_t matrices, rows, inner, columns;
    int32_t a_step[3]; /* to the next matrix, row and inner element */
    int32_t b_step[3]; /* to the next matrix, inner element and column */
    int32_t y_step[3]; /* to the next matrix, row and column */
    int32_t a_zero, b_zero;
    requantization to;
} matmul_params;

static void matmul(const matmul_params *p, const uint8_t *a, const uint8_t *b, uint8_t *y)
{
    for (int32_t i = 0; i < p->matrices; i++) {
        for (int32_t j = 0; j < p->rows; j++) {
            for (int32_t k = 0; k < p->columns; k++) {
                const uint8_t *left = a + i * p->a_step[0] + j * p->a_step[1];
                const uint8_t *right = b + i * p->b_step[0] + k * p->b_step[2];
                int32_t acc = 0;

                for (int32_t l = 0; l < p->inner; l++)
                    acc += (left[l * p->a_step[2]] - p->a_zero) * (right[l * p->b_step[1]] - p->b_zero);
                store(&p->to, y, i * p->y_step[0] + j * p->y_step[1] + k * p->y_step[2], 0, acc);
            }
        }
    }
}
