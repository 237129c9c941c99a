#include "runtime/engine/event_queue.h"

#include <thread>

#include "gtest/gtest.h"

namespace sensorium {
namespace {

TEST(EventQueueTest, GivesEventsInOrderAcrossThreads) {
  EventQueue<int> queue(4);
  std::thread writer([&] {
    for (int i = 0; i < 1000; ++i) queue.Push(i);
  });
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(queue.Pop(), i);
  writer.join();
}

TEST(EventQueueTest, AFullQueueSaysSoDropsNothingAndCallsWhenThereIsRoom) {
  EventQueue<int> queue(2);
  int rooms = 0;
  queue.SetOnRoom([&] { ++rooms; });
  queue.Push(1);
  EXPECT_TRUE(queue.HasRoom());
  queue.Push(2);
  queue.Push(3);
  EXPECT_FALSE(queue.HasRoom());
  EXPECT_EQ(queue.TryPop(), 1);
  EXPECT_EQ(rooms, 0) << "two events are left of a limit of two";
  EXPECT_EQ(queue.TryPop(), 2);
  EXPECT_EQ(rooms, 1);
  EXPECT_TRUE(queue.HasRoom());
  EXPECT_EQ(queue.TryPop(), 3);
  EXPECT_EQ(queue.TryPop(), std::nullopt);
}

TEST(EventQueueTest, CancelStopsPushesAndWakesTheEngine) {
  EventQueue<int> queue;
  int woken = 0;
  queue.SetOnRoom([&] { ++woken; });
  queue.Cancel();
  EXPECT_TRUE(queue.cancelled());
  EXPECT_EQ(woken, 1);
  queue.Push(1);
  EXPECT_EQ(queue.TryPop(), std::nullopt);
}

TEST(EventQueueTest, TellsTheReaderOfEachPush) {
  EventQueue<int> queue;
  int ready = 0;
  queue.SetOnReady([&] { ++ready; });
  queue.Push(1);
  queue.Push(2);
  EXPECT_EQ(ready, 2);
  queue.SetOnReady(nullptr);
  queue.Push(3);
  EXPECT_EQ(ready, 2);
}

}  // namespace
}  // namespace sensorium
