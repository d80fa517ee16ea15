/* Preloaded into a writing process: makes one operation on the files below a folder fail, or ends the process there.

   Counted are operations of the kinds asked for: creating, writing, syncing, renaming, removing, opening for reading.
   At the chosen one the process gets an error number, is killed (in the middle of a write), or stops itself so that
   somebody else can act before it goes on. Everything else goes through to the C library. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE = 2, SYNC = 4, RENAME = 8, REMOVE = 16, READ = 32 };
enum { KILL = -1, STOP = -2 }; /* instead of an error number */

static char folder[PATH_MAX];
static size_t folder_length;
static int kinds, action, lasting;
static long fault_at;
static atomic_long count;

/* From now on, fault at the `at`-th operation of these kinds below `path` (at 0: only count), and if `for_good` at
   every later one that changes the disk. */
void fault_arm(const char *path, int which, long at, int what, int for_good) {
    kinds = which, fault_at = at, action = what, lasting = for_good;
    atomic_store(&count, 0);
    folder_length = strlen(path);
    memcpy(folder, path, folder_length + 1);
}

long fault_count(void) { return atomic_load(&count); }

__attribute__((constructor)) static void arm_from_environment(void) {
    const char *path = getenv("FEATCACHE_FAULT_FOLDER");
    if (path)
        fault_arm(path, atoi(getenv("FEATCACHE_FAULT_KINDS")), atol(getenv("FEATCACHE_FAULT_AT")),
                  atoi(getenv("FEATCACHE_FAULT_ACTION")), atoi(getenv("FEATCACHE_FAULT_LASTING")));
}

static int below(const char *path) {
    return !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

/* Whether an operation of this kind can be the one. */
static int counts(int kind) {
    int broken = lasting && fault_at && atomic_load(&count) >= fault_at;
    return folder_length && (kinds & kind || (broken && kind != READ));
}

/* The error number for this operation; 0 if it is to be done, KILL if the process dies in it. */
static int due(int kind, const char *path) {
    if (!counts(kind) || !path || !below(path)) return 0;
    long number = atomic_fetch_add(&count, 1) + 1;
    if (!fault_at || (lasting ? number < fault_at : number != fault_at)) return 0;
    if (action == STOP) {
        raise(SIGSTOP);
        return 0;
    }
    if (action == KILL && kind != WRITE) kill(getpid(), SIGKILL);
    return action;
}

static int due_fd(int kind, int fd) {
    char link[64], path[PATH_MAX];
    if (!counts(kind)) return 0;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length < 0) return 0;
    path[length] = 0;
    return due(kind, path);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL_IF(fault) do { int error = (fault); if (error) { errno = error; return -1; } } while (0)

/* Killed in the middle of a write: half of it got there. */
#define WRITE_CALL(name, parameters, whole, half) \
    ssize_t name parameters { \
        REAL(name); \
        int number = due_fd(WRITE, fd); \
        if (number == KILL) { (void)!real half; kill(getpid(), SIGKILL); } \
        FAIL_IF(number); \
        return real whole; \
    }
WRITE_CALL(write, (int fd, const void *data, size_t size), (fd, data, size), (fd, data, size / 2))
WRITE_CALL(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), (fd, data, size / 2, at))
WRITE_CALL(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), (fd, data, size / 2, at))
WRITE_CALL(writev, (int fd, const struct iovec *data, int parts), (fd, data, parts), (fd, data, parts / 2))
WRITE_CALL(copy_file_range, (int in, off64_t *from, int fd, off64_t *to, size_t size, unsigned flags),
           (in, from, fd, to, size, flags), (in, from, fd, to, size / 2, flags))

#define FD_CALL(name, kind, parameters, arguments) \
    int name parameters { REAL(name); FAIL_IF(due_fd(kind, fd)); return real arguments; }
FD_CALL(fsync, SYNC, (int fd), (fd))
FD_CALL(fdatasync, SYNC, (int fd), (fd))
FD_CALL(ftruncate, CREATE, (int fd, off_t size), (fd, size))
FD_CALL(ftruncate64, CREATE, (int fd, off64_t size), (fd, size))

#define PATH_CALL(name, kind, parameters, arguments) \
    int name parameters { REAL(name); FAIL_IF(due(kind, path)); return real arguments; }
PATH_CALL(rename, RENAME, (const char *from, const char *path), (from, path))
PATH_CALL(renameat, RENAME, (int a, const char *from, int b, const char *path), (a, from, b, path))
PATH_CALL(link, CREATE, (const char *from, const char *path), (from, path))
PATH_CALL(linkat, CREATE, (int a, const char *from, int b, const char *path, int flags), (a, from, b, path, flags))
PATH_CALL(mkdir, CREATE, (const char *path, mode_t mode), (path, mode))
PATH_CALL(mkdirat, CREATE, (int a, const char *path, mode_t mode), (a, path, mode))
PATH_CALL(unlink, REMOVE, (const char *path), (path))
PATH_CALL(rmdir, REMOVE, (const char *path), (path))

/* shutil.rmtree names files relative to an open folder. */
int unlinkat(int fd, const char *path, int flags) {
    REAL(unlinkat);
    FAIL_IF(*path == '/' ? due(REMOVE, path) : due_fd(REMOVE, fd));
    return real(fd, path, flags);
}

#define OPEN_CALL(name, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        FAIL_IF(due(flags & O_CREAT ? CREATE : READ, path)); \
        return real arguments; \
    }
OPEN_CALL(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN_CALL(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN_CALL(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OPEN_CALL(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode))

DIR *opendir(const char *path) {
    REAL(opendir);
    int error = due(READ, path);
    if (error) errno = error;
    return error ? NULL : real(path);
}
