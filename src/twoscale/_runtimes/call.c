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
    int rank; /* of a batch of images */
    Py_ssize_t shape[LARGEST_RANK];
    Py_ssize_t classes;
    double scale; /* of the output's integers, whose zero point is 0 */
    PyObject *pools; /* list of those not in use */
    PyObject *number; /* the name of a pool's attribute: its address */
    PyObject *array_type, *empty, *float32; /* of NumPy */
    PyObject *for_one; /* arguments of numpy.empty for one image */
} caller;

static int is_float32(const Py_buffer *view)
{
    return view->itemsize == 4 && view->format != NULL && strcmp(view->format, "f") == 0;
}

/* Whether this is a batch of images in the form that the C expects. */
static int fits(const caller *c, const Py_buffer *images)
{
    return is_float32(images) && images->ndim == c->rank &&
           memcmp(images->shape + 1, c->shape + 1, (size_t)(c->rank - 1) * sizeof(Py_ssize_t)) == 0;
}

/* Returns a new array for the logits, or NULL with an error. */
static PyObject *empty_logits(const caller *c, Py_ssize_t count)
{
    if (count == 1)
        return PyObject_Call(c->empty, c->for_one, NULL);
    return PyObject_CallFunction(c->empty, "(nn)O", count, c->classes, c->float32);
}

/* Compute a batch in a pool. Returns whether its pixels are finite. */
static int compute(const caller *c, void *pool, const Py_buffer *images, const Py_buffer *logits)
{
    const int64_t count = images->shape[0];
    char *at = (char *)logits->buf;
    PyThreadState *state = PyEval_SaveThread();
    const int bad = c->run(pool, images->buf, FLOATS, count, at);

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

/* Take the last pool of the list. Returns NULL without an error if all are in use. */
static PyObject *take(const caller *c)
{
    const Py_ssize_t free_pools = PyList_Size(c->pools);
    PyObject *pool;

    if (free_pools <= 0)
        return NULL;
    pool = PyList_GetItem(c->pools, free_pools - 1);
    Py_XINCREF(pool);
    if (pool != NULL && PyList_SetSlice(c->pools, free_pools - 1, free_pools, NULL) != 0) {
        Py_DECREF(pool);
        return NULL;
    }
    return pool;
}

/* Returns the logits, None if the pixels are not all finite or all pools are in use, or NULL with an error. */
static PyObject *logits_of(const caller *c, const Py_buffer *images)
{
    PyObject *pool = take(c), *number, *logits;
    Py_buffer view;
    int finite = 0;

    if (pool == NULL && PyErr_Occurred() == NULL)
        Py_RETURN_NONE;
    if (pool == NULL)
        return NULL;
    number = PyObject_GetAttr(pool, c->number);
    logits = number == NULL ? NULL : empty_logits(c, images->shape[0]);
    if (logits != NULL && PyObject_GetBuffer(logits, &view, PyBUF_WRITABLE) == 0) {
        finite = compute(c, PyLong_AsVoidPtr(number), images, &view);
        PyBuffer_Release(&view);
    }
    Py_XDECREF(number);
    if (PyList_Append(c->pools, pool) != 0 || PyErr_Occurred() != NULL)
        Py_CLEAR(logits);
    Py_DECREF(pool);
    if (logits == NULL || finite)
        return logits;
    Py_DECREF(logits);
    Py_RETURN_NONE;
}

/* call(images) returns None if they have another form or are not finite, or if all pools are in use. */
static PyObject *call(PyObject *self, PyObject *images)
{
    const caller *c = (const caller *)PyCapsule_GetPointer(self, NULL);
    PyObject *logits = NULL;
    Py_buffer view;

    if (c == NULL)
        return NULL;
    if (!PyObject_TypeCheck(images, (PyTypeObject *)c->array_type))
        Py_RETURN_NONE;
    if (PyObject_GetBuffer(images, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    if (fits(c, &view)) {
        logits = logits_of(c, &view);
    } else {
        logits = Py_None;
        Py_INCREF(logits);
    }
    PyBuffer_Release(&view);
    return logits;
}

static PyMethodDef method = {"call", call, METH_O, NULL};

static void free_caller(PyObject *capsule)
{
    caller *c = (caller *)PyCapsule_GetPointer(capsule, NULL);

    Py_XDECREF(c->pools);
    Py_XDECREF(c->number);
    Py_XDECREF(c->array_type);
    Py_XDECREF(c->empty);
    Py_XDECREF(c->float32);
    Py_XDECREF(c->for_one);
    free(c);
}

/* Returns a function that calls `run` on a pool of the list `pools`, which must outlive it. shape: of one image, of at most
 * three dimensions. */
PyObject *caller_new(run_pool *run, PyObject *pools, int rank, const int64_t *shape, int64_t classes, double scale,
                     PyObject *array_type, PyObject *empty, PyObject *float32)
{
    caller *c = (caller *)calloc(1, sizeof *c);
    PyObject *capsule, *made;

    if (c == NULL)
        return PyErr_NoMemory();
    capsule = PyCapsule_New(c, NULL, free_caller);
    if (capsule == NULL) {
        free(c);
        return NULL;
    }
    c->run = run;
    c->rank = rank + 1;
    for (int i = 0; i < rank && i + 1 < LARGEST_RANK; i++)
        c->shape[i + 1] = (Py_ssize_t)shape[i];
    c->classes = (Py_ssize_t)classes;
    c->scale = scale;
    c->number = PyUnicode_InternFromString("number");
    c->for_one = Py_BuildValue("((in)O)", 1, c->classes, float32);
    Py_INCREF(c->pools = pools);
    Py_INCREF(c->array_type = array_type);
    Py_INCREF(c->empty = empty);
    Py_INCREF(c->float32 = float32);
    made = c->number == NULL || c->for_one == NULL ? NULL : PyCFunction_NewEx(&method, capsule, NULL);
    Py_DECREF(capsule);
    return made;
}
