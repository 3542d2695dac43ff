/* The input: images of in_h rows of in_w pixels of in_c channels. lo and hi are relative to the zero point. */
typedef struct {
    int32_t in_h, in_w, in_c;
    int32_t row_stride; /* bytes */
    float scale, lo, hi;
    float inverse; /* of the scale */
    float tie;     /* how far from whole numbers that is right to the last bit; -1: never */
    int32_t zero;
    int32_t shift; /* from an integer to the byte that is kept */
} read_images_params;
