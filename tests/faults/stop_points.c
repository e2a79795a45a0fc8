// Preloaded into a process: counts what it does to files, and ends it, or says that the disk is full, at a given count.
// cc -shared -fPIC -o stop_points.so stop_points.c -ldl

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FULL, LOG };

static long seen = 0, stop = -1;
static int how = COUNT, started = 0, log_fd = -1;

void stop_points_begin(long at, int mode, int fd) { seen = 0; stop = at; how = mode; log_fd = fd; started = 1; }
long stop_points_seen(void) { return seen; }

static void end(void) { syscall(SYS_exit_group, 137); }

static ssize_t raw_write(int fd, const void *data, size_t size) { return syscall(SYS_write, fd, data, size); }

static void tell(const char *op, const char *path) {
    char line[4400];
    int size = snprintf(line, sizeof line, "%s\t%s\n", op, path);
    raw_write(log_fd, line, size);
}

static void tell_fd(const char *op, int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return;
    path[size] = 0;
    tell(op, path);
}

// 1: the call is to fail for want of room. 2: the process ends here, once half of a write is done.
static int event(int takes_room) {
    if (!started) return 0;
    long number = __atomic_fetch_add(&seen, 1, __ATOMIC_SEQ_CST);
    if (how == KILL && number == stop) { if (takes_room == 2) return 2; end(); }
    if (how == FULL && number >= stop && takes_room) { errno = ENOSPC; return 1; }
    return 0;
}

static int is_file(int fd) {
    struct stat found;
    return started && fstat(fd, &found) == 0 && S_ISREG(found.st_mode);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (!is_file(fd)) return real(fd, data, size);
    int stopped = event(2);
    if (stopped == 1) return -1;
    if (stopped == 2) { raw_write(fd, data, size / 2); end(); }
    if (how == LOG) tell_fd("write", fd);
    return real(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    if (is_file(fd)) { if (event(1)) return -1; if (how == LOG) tell_fd("write", fd); }
    return real(fd, parts, count);
}

#define WRITES(name, parameters, arguments, fd) \
    ssize_t name parameters { \
        REAL(name); \
        if (is_file(fd)) { if (event(1)) return -1; if (how == LOG) tell_fd("write", fd); } \
        return real arguments; \
    }
WRITES(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), fd)
WRITES(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), fd)
WRITES(sendfile, (int out, int in, off_t *at, size_t size), (out, in, at, size), out)
WRITES(sendfile64, (int out, int in, off64_t *at, size_t size), (out, in, at, size), out)
WRITES(copy_file_range, (int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags),
       (in, from, out, to, size, flags), out)

#define SYNCS(name) \
    int name(int fd) { REAL(name); if (started) { event(0); if (how == LOG) tell_fd("sync", fd); } return real(fd); }
SYNCS(fsync)
SYNCS(fdatasync)

#define NAMES(name, op, parameters, arguments, path, room) \
    int name parameters { \
        REAL(name); \
        if (started) { if (event(room)) return -1; if (how == LOG) tell(op, path); } \
        return real arguments; \
    }
NAMES(rename, "rename", (const char *from, const char *to), (from, to), to, 0)
NAMES(renameat, "rename", (int a, const char *from, int b, const char *to), (a, from, b, to), to, 0)
NAMES(renameat2, "rename", (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags), to, 0)
NAMES(link, "link", (const char *from, const char *to), (from, to), to, 1)
NAMES(mkdir, "mkdir", (const char *path, mode_t mode), (path, mode), path, 1)
NAMES(mkdirat, "mkdir", (int at, const char *path, mode_t mode), (at, path, mode), path, 1)
NAMES(unlink, "unlink", (const char *path), (path), path, 0)
NAMES(unlinkat, "unlink", (int at, const char *path, int flags), (at, path, flags), path, 0)
NAMES(rmdir, "rmdir", (const char *path), (path), path, 0)

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if (started && (flags & O_CREAT)) { if (event(1)) return -1; if (how == LOG) tell("create", path); } \
        return real(path, flags, mode); \
    }
OPENS(open)
OPENS(open64)

#define OPENATS(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if (started && (flags & O_CREAT)) { if (event(1)) return -1; if (how == LOG) tell("create", path); } \
        return real(at, path, flags, mode); \
    }
OPENATS(openat)
OPENATS(openat64)
