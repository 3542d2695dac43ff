/* The input: images of in_h rows of in_w pixels of in_c channels. lo and hi are relative to the zero point. */
typedef struct {
    int32_t sample, first; /* numbers of all inputs together, and before this one */
    int32_t in_h, in_w, in_c;
    int32_t row_stride; /* bytes */
    float scale, lo, hi;
    float inverse; /* of the scale */
    float tie;     /* products with it round correctly if they are this close to a whole number; -1: none do */
    int32_t zero;
    int32_t shift; /* added to an integer to give the stored byte */
} read_images_params;
