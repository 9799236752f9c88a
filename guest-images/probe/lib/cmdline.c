// SPDX-License-Identifier: Apache-2.0
#include "probe.h"

const char* command_line = "";

bool next_word(const char** rest, struct word* word) {
  const char* text = *rest;
  while (*text == ' ') {
    ++text;
  }
  word->text = text;
  while (*text != '\0' && *text != ' ') {
    ++text;
  }
  word->size = (size_t)(text - word->text);
  *rest = text;
  return word->size > 0;
}

// How many characters of `text` the word begins with, all of them or 0.
static size_t prefix_size(struct word word, const char* text) {
  size_t size = 0;
  while (size < word.size && text[size] != '\0' && word.text[size] == text[size]) {
    ++size;
  }
  return text[size] == '\0' ? size : 0;
}

bool word_is(struct word word, const char* text) {
  return word.size > 0 && prefix_size(word, text) == word.size;
}

bool strip_name(struct word* word, const char* name) {
  size_t size = prefix_size(*word, name);
  if (size == 0 || size >= word->size || word->text[size] != '=') {
    return false;
  }
  word->text += size + 1;
  word->size -= size + 1;
  return true;
}

static unsigned digit_value(char c) {
  if (c >= '0' && c <= '9') {
    return (unsigned)(c - '0');
  }
  if (c >= 'a' && c <= 'f') {
    return (unsigned)(c - 'a') + 10;
  }
  return 16;
}

bool take_number(struct word* word, uint64_t* number) {
  const char* at = word->text;
  const char* end = word->text + word->size;
  unsigned base = 10;
  if (word->size > 2 && at[0] == '0' && at[1] == 'x') {
    base = 16;
    at += 2;
  }
  if (at == end) {
    return false;
  }
  uint64_t value = 0;
  for (; at < end && *at != ','; ++at) {
    unsigned digit = digit_value(*at);
    if (digit >= base) {
      return false;
    }
    value = value * base + digit;
  }
  if (at < end) {
    ++at;
  }
  word->text = at;
  word->size = (size_t)(end - at);
  *number = value;
  return true;
}

uint64_t number_word(const char* name, uint64_t otherwise) {
  const char* rest = command_line;
  uint64_t result = otherwise;
  for (struct word word; next_word(&rest, &word);) {
    uint64_t value;
    if (strip_name(&word, name) && take_number(&word, &value)) {
      result = value;
    }
  }
  return result;
}

bool text_word(const char* name, struct word* text) {
  const char* rest = command_line;
  bool found = false;
  for (struct word word; next_word(&rest, &word);) {
    if (strip_name(&word, name)) {
      *text = word;
      found = true;
    }
  }
  return found;
}
