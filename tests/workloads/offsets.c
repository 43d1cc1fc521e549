/* Prints `name number` for each field that the agent's layouts have (CPython 3.6 to 3.15), as the headers of
 * one interpreter have it. Names with a dot are words of _Py_DebugOffsets (3.13 and newer). */
#define Py_BUILD_CORE 1
#include <Python.h>
#include <stddef.h>
#include <frameobject.h>
#if PY_VERSION_HEX >= 0x030b0000
#include "internal/pycore_frame.h"
#endif
#if PY_VERSION_HEX >= 0x03090000
#include "internal/pycore_interp.h"
#include "internal/pycore_runtime.h"
#elif PY_VERSION_HEX >= 0x03080000
#include "internal/pycore_pystate.h"
#elif PY_VERSION_HEX >= 0x03070000
#include "internal/pystate.h"
#endif
#if PY_VERSION_HEX >= 0x03080000
#include "internal/pycore_gil.h"
#endif

#define SHOW(name, value) printf("%s %zu\n", name, (size_t)(value))
#define FIELD(name, type, field) SHOW(name, offsetof(type, field))
#define WORD(name, field) SHOW(name, offsetof(_Py_DebugOffsets, field) / 8)

static void thread_states(void)
{
#if PY_VERSION_HEX >= 0x03070000
    FIELD("runtime_interpreters_head", _PyRuntimeState, interpreters.head);
    FIELD("gil_last_holder", struct _gil_runtime_state, last_holder);
    FIELD("gil_locked", struct _gil_runtime_state, locked);
#ifdef Py_GIL_DISABLED
    FIELD("gil_enabled", struct _gil_runtime_state, enabled);
#endif
#else
    /* There is no runtime: the variable interp_head itself stands for it. */
    SHOW("runtime_interpreters_head", 0);
#endif
    FIELD("interp_next", PyInterpreterState, next);
#if PY_VERSION_HEX >= 0x030b0000
    FIELD("interp_threads_head", PyInterpreterState, threads.head);
    FIELD("tstate_native_thread_id", PyThreadState, native_thread_id);
    FIELD("tstate_datastack_chunk", PyThreadState, datastack_chunk);
    FIELD("chunk_previous", _PyStackChunk, previous);
    FIELD("chunk_size", _PyStackChunk, size);
#else
    FIELD("interp_threads_head", PyInterpreterState, tstate_head);
#endif
#if PY_VERSION_HEX >= 0x030c0000
    FIELD("gil", PyInterpreterState, ceval.gil);
#elif PY_VERSION_HEX >= 0x03070000
    FIELD("gil", _PyRuntimeState, gilstate.tstate_current);
#endif
#if PY_VERSION_HEX >= 0x03090000 && PY_VERSION_HEX < 0x030f0000
    FIELD("gc_collecting", PyInterpreterState, gc.collecting);
#elif PY_VERSION_HEX >= 0x03070000 && PY_VERSION_HEX < 0x03090000
    FIELD("gc_collecting", _PyRuntimeState, gc.collecting);
#endif
    FIELD("tstate_next", PyThreadState, next);
    FIELD("tstate_interp", PyThreadState, interp);
    FIELD("tstate_thread_id", PyThreadState, thread_id);
#if PY_VERSION_HEX >= 0x030d0000
    FIELD("tstate_frame", PyThreadState, current_frame);
#elif PY_VERSION_HEX >= 0x030b0000
    FIELD("tstate_frame", PyThreadState, cframe);
    FIELD("cframe_current_frame", _PyCFrame, current_frame);
    FIELD("cframe_previous", _PyCFrame, previous);
#else
    FIELD("tstate_frame", PyThreadState, frame);
#endif
    SHOW("tstate_size", sizeof(PyThreadState));
}

static void frames(void)
{
#if PY_VERSION_HEX >= 0x030b0000
    FIELD("frame_previous", _PyInterpreterFrame, previous);
    FIELD("frame_owner", _PyInterpreterFrame, owner);
    SHOW("owner_generator", FRAME_OWNED_BY_GENERATOR);
#if PY_VERSION_HEX >= 0x030c0000
    SHOW("owner_interpreter", FRAME_OWNED_BY_CSTACK);
#else
    FIELD("frame_is_entry", _PyInterpreterFrame, is_entry);
#endif
#if PY_VERSION_HEX >= 0x030d0000
    FIELD("frame_code", _PyInterpreterFrame, f_executable);
    FIELD("frame_instr", _PyInterpreterFrame, instr_ptr);
#else
    FIELD("frame_code", _PyInterpreterFrame, f_code);
    FIELD("frame_instr", _PyInterpreterFrame, prev_instr);
#endif
    SHOW("frame_size", offsetof(_PyInterpreterFrame, localsplus));
#else
    FIELD("frame_previous", PyFrameObject, f_back);
    FIELD("frame_code", PyFrameObject, f_code);
    FIELD("frame_instr", PyFrameObject, f_lasti);
    SHOW("frame_size", sizeof(PyFrameObject));
#endif
}

static void code_objects(void)
{
    FIELD("ob_type", PyObject, ob_type);
    FIELD("filename", PyCodeObject, co_filename);
    FIELD("name", PyCodeObject, co_name);
    FIELD("first_line", PyCodeObject, co_firstlineno);
#if PY_VERSION_HEX >= 0x030a0000
    FIELD("line_table", PyCodeObject, co_linetable);
#else
    FIELD("line_table", PyCodeObject, co_lnotab);
#endif
#if PY_VERSION_HEX >= 0x030b0000
    FIELD("qualname", PyCodeObject, co_qualname);
    FIELD("first_instruction", PyCodeObject, co_code_adaptive);
#else
    FIELD("bytecode", PyCodeObject, co_code);
#endif
#if PY_VERSION_HEX >= 0x030c0000
    FIELD("code_version", PyCodeObject, co_version);
#endif
    FIELD("bytes_size", PyVarObject, ob_size);
    FIELD("bytes_data", PyBytesObject, ob_sval);
    FIELD("type_name", PyTypeObject, tp_name);
    FIELD("str_hash", PyASCIIObject, hash);
    FIELD("str_length", PyASCIIObject, length);
    FIELD("str_state", PyASCIIObject, state);
    SHOW("str_ascii_data", sizeof(PyASCIIObject));
    SHOW("str_compact_data", sizeof(PyCompactUnicodeObject));
}

static void debug_offsets(void)
{
#if PY_VERSION_HEX >= 0x030d0000
    SHOW("words.size", sizeof(_Py_DebugOffsets) / 8);
    WORD("words.cookie", cookie);
    WORD("words.version", version);
    WORD("words.free_threaded", free_threaded);
    WORD("words.runtime_interpreters_head", runtime_state.interpreters_head);
    WORD("words.interp_next", interpreter_state.next);
    WORD("words.interp_threads_head", interpreter_state.threads_head);
    WORD("words.gil", interpreter_state.ceval_gil);
    WORD("words.gc", interpreter_state.gc);
    WORD("words.tstate_next", thread_state.next);
    WORD("words.tstate_interp", thread_state.interp);
    WORD("words.tstate_frame", thread_state.current_frame);
    WORD("words.tstate_thread_id", thread_state.thread_id);
    WORD("words.tstate_native_thread_id", thread_state.native_thread_id);
    WORD("words.tstate_datastack_chunk", thread_state.datastack_chunk);
    WORD("words.frame_previous", interpreter_frame.previous);
    WORD("words.frame_code", interpreter_frame.executable);
    WORD("words.frame_instr", interpreter_frame.instr_ptr);
    WORD("words.frame_owner", interpreter_frame.owner);
    WORD("words.filename", code_object.filename);
    WORD("words.name", code_object.name);
    WORD("words.qualname", code_object.qualname);
    WORD("words.line_table", code_object.linetable);
    WORD("words.first_line", code_object.firstlineno);
    WORD("words.first_instruction", code_object.co_code_adaptive);
    WORD("words.ob_type", pyobject.ob_type);
    WORD("words.type_name", type_object.tp_name);
    WORD("words.bytes_size", bytes_object.ob_size);
    WORD("words.bytes_data", bytes_object.ob_sval);
#endif
}

int main(void)
{
    SHOW("version", PY_VERSION_HEX);
    thread_states();
    frames();
    code_objects();
    debug_offsets();
    return 0;
}
