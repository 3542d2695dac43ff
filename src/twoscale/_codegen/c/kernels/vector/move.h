/* Runs of bytes from one regular pattern of places to another. */
typedef struct {
    int32_t rank; /* up to 6; the last one is the longest */
    int32_t size[6];
    int32_t from_step[6], to_step[6]; /* bytes */
    int32_t run;                      /* bytes */
} move_params;
