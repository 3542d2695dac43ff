/* Calls from Python into a compiled network with little overhead, through Python's limited API. See compiled.py. Without
 * this file, calls go through ctypes and take about 3 microseconds more. */
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* NAME_pool_run of the generated C. */
typedef int run_pool(void *pool, const void *images, int form, int64_t count, void *outputs);

enum { FLOATS = 1, LARGEST_RANK = 4 };

typedef struct {
    run_pool *run;
    void *pool;
    int rank; /* of a batch of images */
    Py_ssize_t shape[LARGEST_RANK];
    Py_ssize_t classes;
    double scale; /* of the output's integers, whose zero point is 0 */
} caller;

static int is_float32(const Py_buffer *view)
{
    return view->itemsize == 4 && view->format != NULL && strcmp(view->format, "f") == 0;
}

/* Compute a batch whose shape and type are checked. Returns whether its pixels are finite. */
static int compute(const caller *c, const Py_buffer *images, const Py_buffer *logits)
{
    const int64_t count = images->shape[0];
    char *at = (char *)logits->buf;
    PyThreadState *state = PyEval_SaveThread();
    const int bad = c->run(c->pool, images->buf, FLOATS, count, at);

    for (int64_t i = 0; i < count * c->classes; i++, at += 4) { /* int32 becomes float in place */
        int32_t q;
        float logit;

        memcpy(&q, at, 4);
        logit = (float)(q * c->scale);
        memcpy(at, &logit, 4);
    }
    PyEval_RestoreThread(state);
    return !bad;
}

/* call(images, logits) returns False if the images have another form or are not finite. */
static PyObject *call(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    const caller *c = (const caller *)PyCapsule_GetPointer(self, NULL);
    Py_buffer images, logits;
    int done = 0;

    if (c == NULL)
        return NULL;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "two arguments are needed");
        return NULL;
    }
    if (PyObject_GetBuffer(arguments[0], &images, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    if (PyObject_GetBuffer(arguments[1], &logits, PyBUF_CONTIG) != 0) {
        PyBuffer_Release(&images);
        return NULL;
    }
    if (is_float32(&images) && images.ndim == c->rank && logits.len == 4 * images.shape[0] * c->classes &&
        memcmp(images.shape + 1, c->shape + 1, (size_t)(c->rank - 1) * sizeof(Py_ssize_t)) == 0)
        done = compute(c, &images, &logits);
    PyBuffer_Release(&logits);
    PyBuffer_Release(&images);
    return PyBool_FromLong(done);
}

static PyMethodDef method = {"call", (PyCFunction)(void (*)(void))call, METH_FASTCALL, NULL};

static void free_caller(PyObject *capsule)
{
    free(PyCapsule_GetPointer(capsule, NULL));
}

/* Returns a function that calls `run` on a pool, which must outlive it. shape: of one image. */
PyObject *caller_new(run_pool *run, void *pool, int rank, const int64_t *shape, int64_t classes, double scale)
{
    caller *c = (caller *)calloc(1, sizeof *c);
    PyObject *capsule, *made;

    if (c == NULL)
        return PyErr_NoMemory();
    c->run = run;
    c->pool = pool;
    c->rank = rank + 1;
    for (int i = 0; i < rank && i + 1 < LARGEST_RANK; i++)
        c->shape[i + 1] = (Py_ssize_t)shape[i];
    c->classes = (Py_ssize_t)classes;
    c->scale = scale;
    capsule = PyCapsule_New(c, NULL, free_caller);
    if (capsule == NULL) {
        free(c);
        return NULL;
    }
    made = PyCFunction_NewEx(&method, capsule, NULL);
    Py_DECREF(capsule);
    return made;
}
