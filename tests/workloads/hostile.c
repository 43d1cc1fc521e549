/* A program that is no Python but looks like one: a section .PyRuntime with the debug offsets of 3.13 (or, with
 * -DFAKE_3_8, the version string of 3.8), and behind it structures that lie. `hostile SCENARIO` forges ten plain
 * frames, which are believed, and prints "ready"; when it is told to go on, by a line, it forges what it was asked for
 * and burns CPU time. `sane` forges nothing more. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { MAX_OFFSET = 65528, RUNTIME_WORDS = 8704 };

#ifdef FAKE_3_8
/* What the agent looks for in a binary without symbols. */
const char version_string[] = "3.8.18\0lib/python3.8\0";
__attribute__((section(".PyRuntime"), used, aligned(4096))) uint64_t _PyRuntime[RUNTIME_WORDS] = {1};
static struct {
    int head, next, threads, gil, ts_next, ts_interp, ts_frame, ts_id, ts_chunk;
    int previous, code, instr, owner, filename, name, qualname, table, line, first, version;
} at = {32, 0, 8, 1368, 8, 16, 24, 176, -1, 24, 32, 104, -1, 104, 112, -1, 120, 40, -1, -1};
enum { STR_DATA = 48, IS_DEBUG_OFFSETS = 0 };
#else
__attribute__((section(".PyRuntime"), used, aligned(4096))) uint64_t _PyRuntime[RUNTIME_WORDS] = {
    0x7970677562656478 /* xdebugpy */, 0x030d00f0, 0,
    [5] = 632, [8] = 7264, [9] = 7344, [14] = 16,
    [21] = 8, [22] = 16, [23] = 72, [24] = 152, [25] = 160, [26] = 232,
    [29] = 8, [30] = 0, [31] = 56, [33] = 70,
    [35] = 112, [36] = 120, [37] = 128, [38] = 136, [39] = 68, [43] = 200,
    [45] = 8, [47] = 24, [65] = 16, [66] = 32,
};
static struct {
    int head, next, threads, gil, ts_next, ts_interp, ts_frame, ts_id, ts_chunk;
    int previous, code, instr, owner, filename, name, qualname, table, line, first, version;
} at = {632, 7264, 7344, 16, 8, 16, 72, 152, 232, 8, 0, 56, 70, 112, 120, 128, 136, 68, 200, 92};
enum { STR_DATA = 40, IS_DEBUG_OFFSETS = 1 };
#endif

enum { STR_ASCII = 1 << 2 | 1 << 5 | 1 << 6, TABLE_BYTES = 1 << 20, N_DEEP = 1000, N_FLOOD = 100000 };

static char *arena, *arena_end;
static char *code_type, *str_type, *bytes_type, *file_name, *line_table;
static char *interp, *tstate;

static char *allocate(size_t n_bytes)
{
    char *memory = arena;
    arena += (n_bytes + 15) & ~(size_t)15;
    if (arena > arena_end)
        abort();
    return memory;
}

static void word(char *object, int offset, uint64_t value)
{
    if (offset >= 0)
        memcpy(object + offset, &value, 8);
}

static void pointer(char *object, int offset, const void *value) { word(object, offset, (uintptr_t)value); }

static char *str(const char *text, uint64_t length, uint32_t state)
{
    char *object = allocate(STR_DATA + 8192);
    pointer(object, 8, str_type);
    word(object, 16, length);
    memcpy(object + 32, &state, 4);
    strcpy(object + STR_DATA, text);
    return object;
}

static char *type(const char *name)
{
    char *object = allocate(64);
    pointer(object, 24, name);
    return object;
}

static char *plain(const char *text) { return str(text, strlen(text), STR_ASCII); }

static char *bytes(uint64_t size, size_t n_bytes)
{
    char *object = allocate(32 + n_bytes);
    pointer(object, 8, bytes_type);
    word(object, 16, size);
    memset(object + 32, 0x81, n_bytes);
    return object;
}

static char *code_object(const void *name, const void *table)
{
    static uint32_t version = 1;
    char *code = allocate(640);
    word(code, 0, 1); /* references */
    pointer(code, 8, code_type);
    word(code, 16, 1000);
    pointer(code, at.filename, file_name);
    pointer(code, at.name, name);
    pointer(code, at.qualname, name);
    pointer(code, at.table, table);
    if (at.version >= 0)
        memcpy(code + at.version, &version, 4);
    version++;
    return code;
}

/* A frame below `previous`. */
static char *frame(const void *previous, const void *code, int owner)
{
    char *memory = allocate(128);
    pointer(memory, at.previous, previous);
    pointer(memory, at.code, code);
    if (at.first >= 0)
        word(memory, at.instr, (uintptr_t)code + at.first + 2);
    if (at.owner >= 0)
        memory[at.owner] = owner;
    return memory;
}

/* The frame of the interpreter at the root, where the version has one. */
static char *root(void) { return at.owner >= 0 ? frame(NULL, code_object(plain("shim"), line_table), 3) : NULL; }

static char *thread_state(const void *next, uint64_t id)
{
    char *state = allocate(1024);
    pointer(state, at.ts_next, next);
    pointer(state, at.ts_interp, interp);
    word(state, at.ts_id, id);
    return state;
}

static void set_leaf(const void *leaf) { pointer(tstate, at.ts_frame, leaf); }

static char *frames(int n, const void *code)
{
    char *leaf = root();
    while (n-- > 0)
        leaf = frame(leaf, code, 0);
    return leaf;
}

static void ring(int n)
{
    char *code = code_object(plain("ring"), line_table);
    char *last = frame(NULL, code, 0), *leaf = last;
    while (--n > 0)
        leaf = frame(leaf, code, 0);
    pointer(last, at.previous, leaf);
    set_leaf(leaf);
}

/* Every kind of text that is none. */
static void strings(void)
{
    static const uint64_t lengths[] = {~0ull, 1ull << 62, 1ull << 32, 1 << 24, 0, 3};
    static const uint32_t states[] = {STR_ASCII, 1 << 5 | 3 << 2, 1 << 5 | 4 << 2, 1 << 5 | 2 << 2, 0, ~0u};
    char *leaf = root();
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 6; j++)
            leaf = frame(leaf, code_object(str("\x1b[31m\xff\n\x80", lengths[i], states[j]), line_table), 0);
    set_leaf(leaf);
}

static void tables(void)
{
    static const uint64_t sizes[] = {~0ull, 1ull << 62, 1 << 30, TABLE_BYTES + 1, TABLE_BYTES, 0, 1};
    char *leaf = root(), *table = bytes(0, TABLE_BYTES);
    for (int i = 0; i < 7; i++) {
        char *own = allocate(64);
        memcpy(own, table, 64);
        word(own, 16, sizes[i]);
        char *code = code_object(plain("table"), sizes[i] == TABLE_BYTES ? table : own);
        word(table, 16, TABLE_BYTES);
        memset(code + at.line, 0xff, 4);
        leaf = frame(leaf, code, 0);
    }
    set_leaf(leaf);
}

static const uint64_t bad[] = {
    1, 7, 4096, 0x7fffffffffff, 0x7ffffffff000, 0x800000000000, 0xffff800000000000, 0xffffffff81000000,
    0xffffffffff600000, ~0ull, ~0ull - 7, 0xdeadbeefdeadbeef,
};

static void pointers(void)
{
    char *leaf = root();
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        leaf = frame(leaf, (void *)bad[i], 0);
        leaf = frame(leaf, code_object((void *)bad[i], line_table), 0);
        leaf = frame(leaf, code_object(plain("p"), (void *)bad[i]), 0);
        char *code = code_object(plain("type"), line_table);
        word(code, 8, bad[i]);
        leaf = frame(leaf, code, 0);
    }
    set_leaf(leaf);
}

/* Changes the leaf between bad addresses. */
static void *change_leaf(void *unused)
{
    char *edge = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(edge + 4096, 4096);
    for (unsigned i = 0;; i++) {
        unsigned n = sizeof bad / sizeof *bad;
        set_leaf(i % (n + 1) == n ? edge + 4096 - 8 : (char *)bad[i % (n + 1)]);
        for (volatile int wait = 0; wait < 100000; wait++)
            ;
    }
    return unused;
}

static void chunks(void)
{
    char *leaf = root(), *code = code_object(plain("chunk"), line_table);
    char *first = NULL;
    for (int i = 0; i < 64; i++) {
        char *chunk = allocate(16384);
        static const uint64_t sizes[] = {16384, ~0ull, 0, 1ull << 47, 8, 4097};
        pointer(chunk, 0, first ? first : chunk);
        word(chunk, 8, sizes[i % 6]);
        first = chunk + (i % 5 == 4 ? 1 : 0);
        leaf = frame(leaf, code, 0);
    }
    pointer(tstate, at.ts_chunk, first);
    set_leaf(leaf);
}

/* As large as the agent lets them be. */
static void offsets(void)
{
    if (!IS_DEBUG_OFFSETS)
        return;
    at.head = at.next = at.threads = at.gil = MAX_OFFSET;
    at.next -= 8;
    at.gil -= 16;
    at.ts_next = 488, at.ts_interp = 480, at.ts_frame = 472, at.ts_id = 464, at.ts_chunk = 496;
    at.previous = 104, at.code = 96, at.instr = 112, at.owner = 127;
    at.filename = 479, at.name = 487, at.qualname = 495, at.table = 503, at.line = 475, at.first = 511;
    static const int words[] = {5, 8, 9, 14, 21, 22, 23, 24, 26, 29, 30, 31, 33, 35, 36, 37, 38, 39, 43};
    const int values[] = {at.head, at.next, at.threads, at.gil, at.ts_next, at.ts_interp, at.ts_frame, at.ts_id,
                          at.ts_chunk, at.previous, at.code, at.instr, at.owner, at.filename, at.name, at.qualname,
                          at.table, at.line, at.first};
    for (unsigned i = 0; i < sizeof words / sizeof *words; i++)
        _PyRuntime[words[i]] = values[i];
    _PyRuntime[25] = 504; /* native_thread_id */
}

/* New code objects in every sample, each with as much to read as there can be. */
static void *flood(void *unused)
{
    static char *codes[N_FLOOD], *frames[N_DEEP];
    char *long_name = str("", 4096, 1 << 5 | 2 << 2), *leaf = root();
    memset(long_name + STR_DATA, 'n', 8192);
    char *table = bytes(TABLE_BYTES, TABLE_BYTES);
    for (int i = 0; i < TABLE_BYTES; i++) /* Another line every few bytes, in both formats. */
        table[32 + i] = "\xe8\x02\x02\x01"[i % (IS_DEBUG_OFFSETS ? 2 : 4)];
    for (int i = 0; i < N_FLOOD; i++)
        codes[i] = code_object(long_name, table);
    for (int i = 0; i < N_DEEP; i++)
        leaf = frames[i] = frame(leaf, codes[i], 0);
    set_leaf(leaf);
    for (uint32_t next = 0;; next += N_DEEP) {
        for (volatile int wait = 0; wait < 3000000; wait++) /* Several samples long. */
            ;
        for (int i = 0; i < N_DEEP; i++)
            pointer(frames[i], at.code, codes[(next + i) % N_FLOOD]);
    }
    return unused;
}

/* Writes pointers and numbers all over the structures while they are read. What discovery looks at stays. */
static void *chaos(void *start)
{
    uint64_t state = (uintptr_t)start | 1, n_words = (arena - (char *)start) / 8;
    for (;;) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        uint64_t value = state >> 32;
        char *place = (char *)start + state % n_words * 8, *target = (char *)start + value % n_words * 8;
        if (value % 64 == 0) {
            set_leaf(target);
            pointer(tstate, at.ts_chunk, place);
        } else if (place < interp || place >= tstate + 1024)
            word(place, 0, value % 4 == 0 ? bad[value / 4 % 12] : value % 4 == 1 ? value / 4 % 512 : (uintptr_t)target);
    }
    return NULL;
}

static void thread(void *(*run)(void *), void *argument)
{
    pthread_t id;
    if (pthread_create(&id, NULL, run, argument))
        abort();
}

int main(int argc, char **argv)
{
    const char *scenario = argc > 1 ? argv[1] : "sane";
    size_t n_bytes = 64 << 20;
    arena = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    arena_end = arena + n_bytes;
    char *start = arena;
    if (!strcmp(scenario, "offsets"))
        offsets();
    code_type = type("code"), str_type = type("str"), bytes_type = type("bytes");
    file_name = plain("forged.py"), line_table = bytes(64, 64);
    interp = allocate(at.threads + 128 > at.next + 128 ? at.threads + 128 : at.next + 128);
    tstate = thread_state(NULL, (uint64_t)pthread_self());
    pointer(interp, at.threads, tstate);
    pointer((char *)_PyRuntime, at.head, interp);
    set_leaf(frames(10, code_object(plain("forged"), line_table)));
    puts("ready");
    fflush(stdout);
    while (getchar() != '\n')
        ;
    if (!strcmp(scenario, "frame-self"))
        ring(1);
    else if (!strcmp(scenario, "frame-ring"))
        ring(1500);
    else if (!strcmp(scenario, "frame-deep"))
        set_leaf(frames(5000, code_object(plain("deep"), line_table)));
    else if (!strcmp(scenario, "thread-ring")) {
        word(tstate, at.ts_id, 42);
        pointer(tstate, at.ts_next, tstate);
    } else if (!strcmp(scenario, "interp-ring")) {
        word(tstate, at.ts_id, 42);
        pointer(interp, at.next, interp);
    } else if (!strcmp(scenario, "many-threads")) {
        word(tstate, at.ts_id, 42);
        char *next = NULL;
        for (int i = 0; i < 4094; i++)
            next = thread_state(next, 43);
        pointer(tstate, at.ts_next, thread_state(next, (uint64_t)pthread_self()));
    } else if (!strcmp(scenario, "strings"))
        strings();
    else if (!strcmp(scenario, "tables"))
        tables();
    else if (!strcmp(scenario, "pointers"))
        pointers();
    else if (!strcmp(scenario, "leaf"))
        thread(change_leaf, NULL);
    else if (!strcmp(scenario, "chunks"))
        chunks();
    else if (!strcmp(scenario, "chaos")) {
        strings(), chunks();
        thread(chaos, start);
    }
    if (!strcmp(scenario, "flood"))
        thread(flood, NULL);
    for (volatile uint64_t i = 0;; i++)
        ;
}
