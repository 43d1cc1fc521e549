/* An extension module whose allocations are known: it takes as many blocks of the C library's as it is told to, keeps
   some and gives others back, and writes to as much of a block as it is told to. Compiled for the limited API of 3.6. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x03060000
#include <Python.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BLOCKS 100000

/* In no version's limited API before 3.13. */
extern void *PyMem_RawMalloc(size_t size);

static void *blocks[MAX_BLOCKS];
static long n_blocks;

static PyObject *keep(void *block)
{
    if (block == NULL || n_blocks == MAX_BLOCKS)
        return PyErr_NoMemory();
    /* The allocation is not to be left out by a compiler. */
    *(volatile char *)block = 1;
    blocks[n_blocks++] = block;
    Py_RETURN_NONE;
}

/* take(size): one block of malloc's. */
static PyObject *take(PyObject *self, PyObject *arguments)
{
    Py_ssize_t size;
    if (!PyArg_ParseTuple(arguments, "n", &size))
        return NULL;
    return keep(malloc(size));
}

/* take_raw(size): one block of PyMem_RawMalloc's. */
static PyObject *take_raw(PyObject *self, PyObject *arguments)
{
    Py_ssize_t size;
    if (!PyArg_ParseTuple(arguments, "n", &size))
        return NULL;
    return keep(PyMem_RawMalloc(size));
}

/* give_back(n): the last n blocks that take() took. */
static PyObject *give_back(PyObject *self, PyObject *arguments)
{
    long n;
    if (!PyArg_ParseTuple(arguments, "l", &n))
        return NULL;
    while (n-- > 0 && n_blocks > 0)
        free(blocks[--n_blocks]);
    Py_RETURN_NONE;
}

/* touch(size, n_touched): a block of malloc's of which so much from its beginning is written to. */
static PyObject *touch(PyObject *self, PyObject *arguments)
{
    Py_ssize_t size, n_touched;
    char *block;
    if (!PyArg_ParseTuple(arguments, "nn", &size, &n_touched))
        return NULL;
    block = malloc(size);
    if (block != NULL)
        memset(block, 1, n_touched);
    return keep(block);
}

static PyMethodDef methods[] = {
    {"take", take, METH_VARARGS, NULL},
    {"take_raw", take_raw, METH_VARARGS, NULL},
    {"give_back", give_back, METH_VARARGS, NULL},
    {"touch", touch, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "native_memory", NULL, -1, methods};

PyMODINIT_FUNC PyInit_native_memory(void)
{
    return PyModule_Create(&module);
}
