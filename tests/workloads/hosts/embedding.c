/* A program that loads libpython long after its start, runs Python in it several times, and has threads without a
 * thread state. Arguments: libpython, milliseconds to wait, Python source, how often. */

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *native(void *unused)
{
    for (volatile unsigned long n = 0;; n++) {
    }
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t thread;

    if (argc != 5)
        return 2;
    puts("started");
    fflush(stdout);
    usleep(atoi(argv[2]) * 1000);
    void *python = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
    if (python == NULL) {
        puts(dlerror());
        return 1;
    }
    void (*initialize)(int) = (void (*)(int))dlsym(python, "Py_InitializeEx");
    int (*run)(const char *) = (int (*)(const char *))dlsym(python, "PyRun_SimpleString");
    int (*finalize)(void) = (int (*)(void))dlsym(python, "Py_FinalizeEx");
    pthread_create(&thread, NULL, native, NULL);
    for (int round = 0; round < atoi(argv[4]); round++) {
        initialize(0);
        run(argv[3]);
        finalize();
    }
    return 0;
}
