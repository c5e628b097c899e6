/*
 * Shows the processes that it is preloaded into a small disk: the directory that SMALL_DISK names has room for as many bytes as
 * the file says that SMALL_DISK_ROOM names. A write that makes a file in there longer than that allows fails with ENOSPC.
 *
 * The server writes its relations and its temporary files with pwrite() and pwritev(). What the files take is counted, because
 * they shrink and go in any process; of the room that is left a process uses a sixteenth before it counts again.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static const volatile int64_t *room;
static const char *disk;
static int64_t credit;

__attribute__((constructor)) static void
map_room(void)
{
	const char *name = getenv("SMALL_DISK_ROOM");
	int			file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
	void	   *page = mmap(NULL, sizeof *room, PROT_READ, MAP_SHARED, file, 0);
	const char *directory = getenv("SMALL_DISK");

	if (page == MAP_FAILED || !directory)
		abort();
	close(file);
	room = page;
	disk = realpath(directory, NULL);
	if (!disk)
		abort();
}

static int64_t
taken(int parent, const char *name)
{
	int64_t		bytes = 0;
	int			file = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR		   *directory = file < 0 ? NULL : fdopendir(file);
	struct dirent *entry;
	struct stat status;

	while (directory && (entry = readdir(directory)))
	{
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (fstatat(file, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0)
			continue;
		bytes += S_ISDIR(status.st_mode) ? taken(file, entry->d_name) : status.st_size;
	}
	if (directory)
		closedir(directory);
	return bytes;
}

static int
is_full(int file, int64_t end)
{
	char		link[64];
	char		path[PATH_MAX];
	struct stat status;
	ssize_t		length;
	int			before = errno;
	int64_t		more,
				left;

	if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode) || end <= status.st_size)
		return 0;
	snprintf(link, sizeof link, "/proc/self/fd/%d", file);
	length = readlink(link, path, sizeof path - 1);
	if (length < 0)
		abort();
	path[length] = '\0';
	if (strncmp(path, disk, strlen(disk)) != 0 || path[strlen(disk)] != '/')
		return 0;
	more = end - status.st_size;
	if (credit < more)
	{
		left = *room - taken(AT_FDCWD, disk) - more;
		if (left < 0)
		{
			errno = ENOSPC;
			return 1;
		}
		credit = more + left / 16;
	}
	credit -= more;
	errno = before;
	return 0;
}

ssize_t
pwrite(int file, const void *bytes, size_t length, off_t offset)
{
	return is_full(file, offset + length) ? -1 : syscall(SYS_pwrite64, file, bytes, length, offset);
}

ssize_t
pwrite64(int file, const void *bytes, size_t length, off_t offset)
{
	return pwrite(file, bytes, length, offset);
}

ssize_t
pwritev(int file, const struct iovec *parts, int count, off_t offset)
{
	int64_t		length = 0;

	for (int n = 0; n < count; n++)
		length += parts[n].iov_len;
	return is_full(file, offset + length) ? -1 : syscall(SYS_pwritev, file, parts, count, offset, 0L);
}
