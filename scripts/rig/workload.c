/* The guest's workload: numbered records with checksums, each one synced before the next is begun.
 *
 *     workload FOLDER [FOLDER]
 *
 * Record n goes to folder n mod (number of folders), so record n exists only where all before it
 * are safe, on whichever disk. 64 records fill a file; the oldest files are deleted, so that the
 * file system allocates, frees and allocates again. After every record a line goes to standard
 * output: the record's number, and the guest's clock in microseconds. Started again, the workload
 * goes on behind the newest record that it finds.
 *
 * A record of 4096 bytes, little endian: "QDRECORD", its number (8 bytes), what follows from its
 * number, and at 4092 the CRC-32 of all before. scripts/rig/check.py reads it.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { RECORD = 4096, RECORDS_A_FILE = 64, FILES_KEPT = 96, FOLDERS_MAX = 8 };

static uint32_t crc_table[256];

static void fail(const char *what) {
    fprintf(stderr, "workload: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void make_crc_table(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0);
        crc_table[i] = value;
    }
}

static uint32_t crc(const unsigned char *bytes, size_t length) {
    uint32_t value = ~0u;
    for (size_t i = 0; i < length; i++)
        value = (value >> 8) ^ crc_table[(value ^ bytes[i]) & 255];
    return ~value;
}

/* A quarter does not compress, the rest repeats the number. */
static void fill(unsigned char *record, uint64_t number) {
    uint64_t state = number * 0x9E3779B97F4A7C15u + 1;
    memcpy(record, "QDRECORD", 8);
    memcpy(record + 8, &number, 8);
    for (size_t at = 16; at < RECORD; at += 8) {
        uint64_t word = number;
        if (at < RECORD / 4) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            word = state;
        }
        memcpy(record + at, &word, 8);
    }
    uint32_t sum = crc(record, RECORD - 4);
    memcpy(record + RECORD - 4, &sum, 4);
}

static void path_of(char *path, size_t size, const char *folder, uint64_t file) {
    snprintf(path, size, "%s/%010llu", folder, (unsigned long long)file);
}

/* How many records a folder has, counted from the very first: where its next one goes. */
static uint64_t records_in(const char *folder) {
    uint64_t newest = 0, count = 0;
    DIR *open_folder = opendir(folder);
    if (!open_folder)
        fail(folder);
    for (struct dirent *entry; (entry = readdir(open_folder));) {
        struct stat status;
        char path[512];
        if (entry->d_name[0] == '.')
            continue;
        uint64_t file = strtoull(entry->d_name, NULL, 10);
        path_of(path, sizeof path, folder, file);
        if (stat(path, &status) != 0)
            fail(path);
        if (file >= newest) {
            newest = file;
            count = file * RECORDS_A_FILE + (uint64_t)status.st_size / RECORD;
        }
    }
    closedir(open_folder);
    return count;
}

/* The folder's own entries are safe, too. */
static void sync_folder(const char *folder) {
    int descriptor = open(folder, O_RDONLY | O_DIRECTORY);
    if (descriptor < 0 || fsync(descriptor) != 0)
        fail(folder);
    close(descriptor);
}

static int open_file(const char *folder, uint64_t file) {
    char path[512];
    path_of(path, sizeof path, folder, file);
    int descriptor = open(path, O_WRONLY | O_CREAT, 0644);
    if (descriptor < 0)
        fail(path);
    if (file >= FILES_KEPT) {
        path_of(path, sizeof path, folder, file - FILES_KEPT);
        if (unlink(path) != 0 && errno != ENOENT)
            fail(path);
    }
    sync_folder(folder);
    return descriptor;
}

int main(int count, char **arguments) {
    int folders = count - 1, descriptors[FOLDERS_MAX];
    uint64_t next = 0;
    unsigned char record[RECORD];
    if (folders < 1 || folders > FOLDERS_MAX)
        return 2;
    make_crc_table();
    for (int i = 0; i < folders; i++) {
        descriptors[i] = -1;
        next += records_in(arguments[i + 1]);
    }
    for (uint64_t number = next;; number++) {
        int i = (int)(number % (uint64_t)folders);
        uint64_t slot = number / (uint64_t)folders, within = slot % RECORDS_A_FILE;
        if (descriptors[i] < 0 || within == 0) {
            if (descriptors[i] >= 0)
                close(descriptors[i]);
            descriptors[i] = open_file(arguments[i + 1], slot / RECORDS_A_FILE);
        }
        fill(record, number);
        if (pwrite(descriptors[i], record, RECORD, (off_t)(within * RECORD)) != RECORD)
            fail("writing a record");
        if (fsync(descriptors[i]) != 0)
            fail("syncing a record");
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        dprintf(1, "%llu %llu\n", (unsigned long long)number,
                (unsigned long long)now.tv_sec * 1000000u + (unsigned long long)now.tv_nsec / 1000);
    }
}
