// SPDX-License-Identifier: Apache-2.0
// probe=blk: a job on a virtio disk, over MMIO or PCI; README.md has its words. At most `depth`
// requests are under way at any time; each that is done makes room for the next one.
#include "../lib/blk.h"

#include "../lib/histogram.h"
#include "tests.h"

#define IRQ_BLK 2
#define DEPTH_MAX 128
#define BLOCK_MAX (1u << 20)
#define PATIENCE_MS 10000
#define PAUSE_MS 100
#define GOLDEN_RATIO 0x9e3779b97f4a7c15

enum op { OP_READ, OP_WRITE, OP_MIX };

static const struct {
  const char* name;
  enum op op;
  bool random;
} ops[] = {
    {"read", OP_READ, false},    {"write", OP_WRITE, false},    {"mix", OP_MIX, false},
    {"randread", OP_READ, true}, {"randwrite", OP_WRITE, true}, {"randmix", OP_MIX, true},
};

struct job {
  // What the words say.
  const char* name;
  enum op op;
  bool random;
  uint64_t blocks;  // of the span
  uint64_t count;   // 0: until the time is over
  uint64_t ticks;   // 0: until the count is reached
  uint64_t seed;
  bool verify;
  bool interrupts;
  uint64_t flush_every;  // so many writes; 0: never
  // Where it is.
  uint64_t state;  // of the random numbers
  uint64_t next_block;
  uint64_t submitted;
  uint64_t writes_since_flush;
  uint64_t acknowledged;  // interrupts
  bool reading_back;
  uint8_t* written;  // with verify: a bit for each block
  // What came of it.
  uint64_t requests;
  uint64_t bytes;
  uint64_t flushes;
  uint64_t errors;
  uint64_t verified;
  uint64_t wrong;
  uint64_t elapsed;
};

static struct histogram latencies;

static _Noreturn void refuse(const char* what) {
  print("probe: blk: ");
  print(what);
  print("\n");
  end_panic();
}

// xorshift64*
static uint64_t random_number(struct job* job) {
  job->state ^= job->state >> 12;
  job->state ^= job->state << 25;
  job->state ^= job->state >> 27;
  return job->state * 0x2545f4914f6cdd1d;
}

// --- the pattern
// -----------------------------------------------------------------------------------

// Word `i` of sector `s`: 64 * s + i + seed * 0x9e3779b97f4a7c15, so it tells where it belongs.
static uint64_t first_word(const struct job* job, const struct blk* blk, uint64_t block) {
  return block * (blk->block_size / sizeof(uint64_t)) + job->seed * GOLDEN_RATIO;
}

static void fill(const struct job* job, const struct blk* blk, uint32_t slot, uint64_t block) {
  uint64_t* words = (uint64_t*)blk_data(blk, slot);
  uint64_t first = first_word(job, blk, block);
  for (uint64_t i = 0; i < blk->block_size / sizeof(uint64_t); ++i) {
    words[i] = first + i;
  }
}

static void compare(struct job* job, const struct blk* blk, uint32_t slot, uint64_t block) {
  const uint64_t* words = (const uint64_t*)blk_data(blk, slot);
  uint64_t first = first_word(job, blk, block);
  ++job->verified;
  for (uint64_t i = 0; i < blk->block_size / sizeof(uint64_t); ++i) {
    if (words[i] != first + i) {
      if (job->wrong++ == 0) {
        print_value("blk_wrong_sector", (block * blk->block_size + i * sizeof(uint64_t)) / SECTOR);
      }
      return;
    }
  }
}

// --- what to do next
// -------------------------------------------------------------------------------

static bool next_written(struct job* job, uint64_t* block) {
  while (job->next_block < job->blocks) {
    *block = job->next_block++;
    if ((job->written[*block / 8] & 1u << *block % 8) != 0) {
      return true;
    }
  }
  return false;
}

static uint64_t choose_block(struct job* job) {
  if (job->random) {
    // The upper 64 bits of the product: evenly spread.
    return (uint64_t)(((unsigned __int128)random_number(job) * job->blocks) >> 64);
  }
  uint64_t block = job->next_block;
  job->next_block = block + 1 == job->blocks ? 0 : block + 1;
  return block;
}

// Submits the next request with this slot; false where there is none any more.
static bool submit_next(struct job* job, struct blk* blk, uint32_t slot, uint64_t now) {
  struct blk_request* request = &blk->requests[slot];
  uint32_t type = BLK_READ;
  if (job->reading_back) {
    if (!next_written(job, &request->block)) {
      return false;
    }
  } else if (job->flush_every != 0 && job->writes_since_flush == job->flush_every) {
    job->writes_since_flush = 0;
    type = BLK_FLUSH;
    request->block = 0;
  } else {
    request->block = choose_block(job);
    if (job->op == OP_WRITE || (job->op == OP_MIX && (random_number(job) >> 63) != 0)) {
      type = BLK_WRITE;
      ++job->writes_since_flush;
      if (job->verify) {
        fill(job, blk, slot, request->block);
      }
    }
  }
  request->began = now;
  // §5.2.6: the sector of a flush is 0.
  blk_submit(blk, slot, type, request->block * (blk->block_size / SECTOR));
  ++job->submitted;
  return true;
}

static void note_done(struct job* job, struct blk* blk, uint32_t slot, uint64_t now) {
  struct blk_request* request = &blk->requests[slot];
  if (request->status != BLK_OK) {
    ++job->errors;
    return;
  }
  if (job->reading_back) {
    compare(job, blk, slot, request->block);
    return;
  }
  histogram_add(&latencies, now - request->began);
  ++job->requests;
  if (request->type == BLK_FLUSH) {
    ++job->flushes;
    return;
  }
  job->bytes += blk->block_size;
  if (!job->verify) {
    return;
  }
  if (request->type == BLK_WRITE) {
    job->written[request->block / 8] |= (uint8_t)(1u << request->block % 8);
  } else if (job->op == OP_READ) {
    // In a mix it is read back at the end: a write of the same block may be under way now.
    compare(job, blk, slot, request->block);
  }
}

// --- the loop
// --------------------------------------------------------------------------------------

static bool has_interrupted(const struct job* job) {
  return interrupt_counts[IRQ_BLK] != job->acknowledged;
}

// Until the device has told of more by an interrupt, or without interrupts until it is there.
static void wait_for_more(const struct job* job, const struct blk* blk) {
  uint64_t waited = 0;
  uint64_t last = tsc();
  while (job->interrupts ? !has_interrupted(job) : !virtqueue_has_used(&blk->queue)) {
    relax();
    uint64_t now = tsc();
    // Longer ones are pauses, or the time that a snapshot lay: no disk was asked then.
    if (now - last < PAUSE_MS * tsc_khz()) {
      waited += now - last;
    }
    last = now;
    if (waited > PATIENCE_MS * tsc_khz()) {
      refuse("no answer for 10 s");
    }
  }
}

static bool is_over(const struct job* job, uint64_t now, uint64_t start) {
  return !job->reading_back && ((job->count != 0 && job->submitted >= job->count) ||
                                (job->ticks != 0 && now - start >= job->ticks));
}

static void run(struct job* job, struct blk* blk) {
  uint32_t free_slots[DEPTH_MAX];
  uint32_t free_count = 0;
  for (uint32_t slot = blk->depth; slot > 0; --slot) {
    free_slots[free_count++] = slot - 1;
  }
  uint64_t start = tsc();
  uint64_t now = start;
  for (;;) {
    while (free_count > 0 && !is_over(job, now, start) &&
           submit_next(job, blk, free_slots[free_count - 1], now)) {
      --free_count;
    }
    virtqueue_publish(&blk->queue);
    if (free_count == blk->depth) {
      break;
    }
    if (!virtqueue_has_used(&blk->queue)) {
      wait_for_more(job, blk);
    }
    if (job->interrupts && has_interrupted(job)) {
      job->acknowledged = interrupt_counts[IRQ_BLK];
      blk->device.transport->acknowledge(&blk->device);
    }
    now = tsc();
    uint32_t slot;
    while (blk_take(blk, &slot)) {
      note_done(job, blk, slot, now);
      free_slots[free_count++] = slot;
    }
    virtqueue_want_interrupt(&blk->queue, job->interrupts);
  }
  job->elapsed = now - start;
}

// --- words and results
// -----------------------------------------------------------------------------

static void read_op(struct job* job) {
  struct word told;
  if (!text_word("op", &told)) {
    told = (struct word){"randread", 8};
  }
  for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); ++i) {
    if (word_is(told, ops[i].name)) {
      job->name = ops[i].name;
      job->op = ops[i].op;
      job->random = ops[i].random;
      return;
    }
  }
  refuse("op= takes read, write, mix, randread, randwrite or randmix");
}

static void read_words(struct job* job, struct blk_settings* settings) {
  read_op(job);
  job->count = number_word("count", 0);
  job->ticks = number_word("ms", job->count == 0 ? 1000 : 0) * tsc_khz();
  job->seed = number_word("seed", 1);
  job->state = (job->seed + 1) * GOLDEN_RATIO;
  job->verify = number_word("verify", 0) != 0;
  job->interrupts = number_word("interrupts", 0) != 0;
  job->flush_every = number_word("flush", 0);
  settings->index = (unsigned)number_word("disk", 0);
  settings->block_size = (uint32_t)number_word("bs", 4096);
  settings->depth = (uint32_t)number_word("depth", 1);
  settings->queue_size = (uint16_t)number_word("queue", 256);
  settings->interrupts = job->interrupts;
  settings->irq = IRQ_BLK;
  settings->features = (number_word("indirect", 1) != 0 ? VIRTIO_F_INDIRECT_DESC : 0) |
                       (number_word("event_idx", 1) != 0 ? VIRTIO_F_EVENT_IDX : 0) |
                       (number_word("write_back", 1) != 0 ? BLK_F_FLUSH : 0);
  if (settings->block_size == 0 || settings->block_size % SECTOR != 0 ||
      settings->block_size > BLOCK_MAX) {
    refuse("bs= takes multiples of 512 up to 1048576");
  }
  if (settings->depth == 0 || settings->depth > DEPTH_MAX) {
    refuse("depth= takes 1 to 128");
  }
}

static void limit_span(struct job* job, const struct blk* blk) {
  uint64_t size = blk->sectors * SECTOR;
  uint64_t span = number_word("span", size);
  if (span > size) {
    refuse("span= is more than the disk has");
  }
  job->blocks = span / blk->block_size;
  if (job->blocks == 0) {
    refuse("the disk has no block of this size");
  }
  if (job->flush_every != 0 && (blk->device.features & BLK_F_FLUSH) == 0) {
    refuse("the disk has no flush");
  }
  if (job->verify) {
    job->written = memset(allocate(job->blocks / 8 + 1, 1), 0, job->blocks / 8 + 1);
  }
}

static void print_pair(const char* name, uint64_t value) {
  print(" ");
  print(name);
  print("=");
  print_number(value);
}

static uint64_t nanoseconds(uint64_t ticks) {
  return ticks * 1000000 / tsc_khz();
}

// One line: each character of it costs an exit.
static void print_results(const struct job* job, const struct blk* blk) {
  print("probe: blk=");
  print(job->name);
  print(" transport=");
  print(blk->device.transport->name);
  print_pair("bs", blk->block_size);
  print_pair("depth", blk->depth);
  print_pair("requests", job->requests);
  print_pair("bytes", job->bytes);
  print_pair("ns", nanoseconds(job->elapsed));
  print_pair("p50_ns", nanoseconds(histogram_quantile(&latencies, 500)));
  print_pair("p99_ns", nanoseconds(histogram_quantile(&latencies, 990)));
  print_pair("flushes", job->flushes);
  print_pair("errors", job->errors);
  print_pair("verified", job->verified);
  print_pair("wrong", job->wrong);
  print_pair("notifications", blk->queue.notifications);
  print_pair("interrupts", interrupt_counts[IRQ_BLK]);
  print("\n");
}

// A word and a time without exits, for who looks at the VMM from outside before and after the job.
static void announce(const char* state, uint64_t pause_ms) {
  if (pause_ms == 0) {
    return;
  }
  print_text_value("blk_state", state);
  uint64_t end = tsc() + pause_ms * tsc_khz();
  while (tsc() < end) {
    relax();
  }
}

void test_blk(const struct argument* argument) {
  (void)argument;
  static struct job job;
  static struct blk blk;
  struct blk_settings settings;
  memset(&job, 0, sizeof(job));
  memset(&latencies, 0, sizeof(latencies));
  read_words(&job, &settings);
  if (job.interrupts) {
    enable_interrupts();
    interrupt_counts[IRQ_BLK] = 0;
  }
  blk_open(&blk, &settings);
  limit_span(&job, &blk);
  uint64_t pause_ms = number_word("pause", 0);
  announce("begin", pause_ms);
  run(&job, &blk);
  announce("end", pause_ms);
  if (job.verify && job.op != OP_READ) {
    uint64_t elapsed = job.elapsed;
    job.reading_back = true;
    job.next_block = 0;
    run(&job, &blk);
    job.elapsed = elapsed;
  }
  blk_close(&blk);
  print_results(&job, &blk);
}
