// Encoding of the replies.
#include "upcall_reply.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include <cmath>

#include "ops.h"
#include "upper_open.h"

namespace firstlight {

namespace {

// A validity as seconds and ns; what is not finite is for ever.
void put_valid(double ms, uint64_t* seconds, uint32_t* ns) {
  if (!(ms < static_cast<double>(kForever) * 1000)) {
    *seconds = kForever;
    *ns = 0;
    return;
  }
  double whole = std::floor(std::max(ms, 0.0) / 1000);
  *seconds = static_cast<uint64_t>(whole);
  *ns = static_cast<uint32_t>((std::max(ms, 0.0) - whole * 1000) * 1e6);
}

void fill_entry(const TreeEntry& from, fuse_entry_out* entry) {
  *entry = {};
  entry->nodeid = from.node;
  put_valid(from.entry_valid_ms, &entry->entry_valid, &entry->entry_valid_nsec);
  put_valid(from.attr_valid_ms, &entry->attr_valid, &entry->attr_valid_nsec);
  fill_from_slots(from.attributes, &entry->attr);
}

/** A call that was taken out of the table, with the session that it came from. */
struct Claimed {
  std::shared_ptr<Session> session;
  std::shared_ptr<Upcall> upcall;

  Claimed(UpcallChannel& channel, uint64_t call) : session(channel.session()) {
    upcall = channel.claim(call);
  }
  explicit operator bool() const { return session != nullptr && upcall != nullptr; }
  bool send(int error, const void* data, size_t bytes) const {
    return session->reply(upcall->lane, upcall->unique, -error, data, bytes) == 0;
  }
  template <class T>
  bool send(const T& out) const {
    return send(0, &out, sizeof out);
  }
};

bool open_claimed(const Claimed& claimed, uint64_t node, const fuse_entry_out* entry,
                  TreeFile file) {
  UpperOpen open;
  open.unique = claimed.upcall->unique;
  open.lane = claimed.upcall->lane;
  open.node = node;
  open.fd = std::make_shared<const UniqueFd>(std::move(file.fd));
  open.direct = file.direct;
  open.tag = file.tag;
  open.entry = entry;
  open.ino = entry != nullptr ? entry->attr.ino : file.ino;
  int result = open_upper(*claimed.session, open);
  if (result == 0) return true;
  if (result != -ENOENT && result != -ENODEV) claimed.send(-result, nullptr, 0);
  return false;
}

}  // namespace

bool reply_result(UpcallChannel& channel, uint64_t call, int error) {
  Claimed claimed(channel, call);
  return claimed && claimed.send(error, nullptr, 0);
}

bool reply_data(UpcallChannel& channel, uint64_t call, const void* data, size_t bytes) {
  Claimed claimed(channel, call);
  if (!claimed) return false;
  bool sized = claimed.upcall->opcode == FUSE_GETXATTR || claimed.upcall->opcode == FUSE_LISTXATTR;
  if (!sized) return claimed.send(0, data, bytes);
  if (claimed.upcall->room == 0) {
    fuse_getxattr_out out = {static_cast<uint32_t>(bytes), 0};
    return claimed.send(out);
  }
  if (bytes > claimed.upcall->room) return claimed.send(ERANGE, nullptr, 0);
  return claimed.send(0, data, bytes);
}

bool reply_size(UpcallChannel& channel, uint64_t call, uint32_t bytes) {
  Claimed claimed(channel, call);
  if (!claimed) return false;
  fuse_getxattr_out out = {bytes, 0};
  return claimed.send(out);
}

bool reply_entry(UpcallChannel& channel, uint64_t call, const TreeEntry& entry) {
  Claimed claimed(channel, call);
  if (!claimed) return false;
  fuse_entry_out out;
  fill_entry(entry, &out);
  return claimed.send(out);
}

bool reply_no_entry(UpcallChannel& channel, uint64_t call) {
  Claimed claimed(channel, call);
  if (!claimed) return false;
  fuse_entry_out out = {};
  out.entry_valid = kForever;
  return claimed.send(out);
}

bool reply_attr(UpcallChannel& channel, uint64_t call, const double* attributes, double valid_ms) {
  Claimed claimed(channel, call);
  if (!claimed) return false;
  fuse_attr_out out = {};
  put_valid(valid_ms, &out.attr_valid, &out.attr_valid_nsec);
  fill_from_slots(attributes, &out.attr);
  claimed.session->handles().learn_ino(claimed.upcall->node, out.attr.ino);
  if (claimed.upcall->opcode != abi::kOpStatx) return claimed.send(out);
  abi::StatxOut statx;
  fill_statx(out.attr, &statx);
  statx.attr_valid = out.attr_valid;
  statx.attr_valid_nsec = out.attr_valid_nsec;
  if (attributes[kAttrBirthSec] != 0) {
    statx.mask |= STATX_BTIME;
    statx.btime = {static_cast<int64_t>(attributes[kAttrBirthSec]),
                   static_cast<uint32_t>(attributes[kAttrBirthNsec]), 0};
  }
  return claimed.send(statx);
}

bool reply_open(UpcallChannel& channel, uint64_t call, TreeFile file) {
  Claimed claimed(channel, call);
  return claimed && open_claimed(claimed, claimed.upcall->node, nullptr, std::move(file));
}

bool reply_create(UpcallChannel& channel, uint64_t call, const TreeEntry& entry, TreeFile file) {
  Claimed claimed(channel, call);
  if (!claimed) return false;
  fuse_entry_out out;
  fill_entry(entry, &out);
  return open_claimed(claimed, entry.node, &out, std::move(file));
}

bool reply_statfs(UpcallChannel& channel, uint64_t call, const double* numbers) {
  Claimed claimed(channel, call);
  if (!claimed) return false;
  fuse_statfs_out out = {};
  out.st.bsize = static_cast<uint32_t>(numbers[0]);
  out.st.frsize = static_cast<uint32_t>(numbers[1]);
  out.st.blocks = static_cast<uint64_t>(numbers[2]);
  out.st.bfree = static_cast<uint64_t>(numbers[3]);
  out.st.bavail = static_cast<uint64_t>(numbers[4]);
  out.st.files = static_cast<uint64_t>(numbers[5]);
  out.st.ffree = static_cast<uint64_t>(numbers[6]);
  out.st.namelen = static_cast<uint32_t>(numbers[7]);
  return claimed.send(out);
}

bool add_dirent(UpcallChannel& channel, uint64_t call, std::string_view name, uint64_t cookie,
                const TreeEntry& entry) {
  auto upcall = channel.peek(call);
  if (upcall == nullptr) return false;
  bool plus = upcall->opcode == FUSE_READDIRPLUS;
  std::vector<uint8_t>& listing = upcall->listing;
  size_t head = (plus ? sizeof(fuse_entry_out) : 0) + offsetof(fuse_dirent, name);
  size_t bytes = (head + name.size() + 7) & ~size_t{7};
  if (bytes > upcall->room - listing.size()) {
    upcall->listing_full = true;
    return false;
  }
  if (listing.empty()) listing.reserve(upcall->room);
  size_t start = listing.size();
  listing.resize(start + bytes);
  uint8_t* at = listing.data() + start;
  if (plus) {
    fuse_entry_out out = {};
    if (entry.node != 0) fill_entry(entry, &out);
    memcpy(at, &out, sizeof out);
    at += sizeof out;
  }
  fuse_dirent dirent = {};
  dirent.ino = static_cast<uint64_t>(entry.attributes[0]);
  dirent.off = cookie;
  dirent.namelen = static_cast<uint32_t>(name.size());
  dirent.type = (static_cast<uint32_t>(entry.attributes[9]) & S_IFMT) >> 12;
  memcpy(at, &dirent, offsetof(fuse_dirent, name));
  memcpy(at + offsetof(fuse_dirent, name), name.data(), name.size());
  return true;
}

bool reply_listing(UpcallChannel& channel, uint64_t call) {
  Claimed claimed(channel, call);
  if (!claimed) return false;
  const std::vector<uint8_t>& listing = claimed.upcall->listing;
  // The kernel takes an empty reply for the end of the directory.
  if (listing.empty() && claimed.upcall->listing_full) {
    claimed.send(EINVAL, nullptr, 0);
    return false;
  }
  return claimed.send(0, listing.data(), listing.size());
}

void reply_from_template(UpcallChannel& channel, uint64_t call) {
  Claimed claimed(channel, call);
  if (claimed) open_from_template(*claimed.session, *claimed.upcall);
}

}  // namespace firstlight
