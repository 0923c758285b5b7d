// A Go app with redigo, written as if there were no tunnel.
package main

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/gomodule/redigo/redis"
)

func dial() (redis.Conn, error) { return redis.DialURL(os.Getenv("REDIS_URL")) }

func check(name string, condition func() (bool, error)) {
	switch right, err := condition(); {
	case err != nil:
		fmt.Printf("check %s: %T: %v\n", name, err, err)
	case right:
		fmt.Printf("check %s: ok\n", name)
	default:
		fmt.Printf("check %s: wrong result\n", name)
	}
}

func checks() {
	var c redis.Conn
	check("boot", func() (bool, error) {
		var err error
		if c, err = dial(); err != nil {
			return false, err
		}
		pong, err := redis.String(c.Do("PING"))
		return pong == "PONG", err
	})
	if c == nil {
		return
	}
	check("user", func() (bool, error) {
		user, err := redis.String(c.Do("ACL", "WHOAMI"))
		return user == "app", err
	})
	check("database", func() (bool, error) {
		info, err := redis.String(c.Do("CLIENT", "INFO"))
		return strings.Contains(info, " db=3 "), err
	})
	check("pipeline", func() (bool, error) {
		for n := 0; n < 100; n++ {
			if err := c.Send("ECHO", n); err != nil {
				return false, err
			}
		}
		if err := c.Flush(); err != nil {
			return false, err
		}
		for n := 0; n < 100; n++ {
			if reply, err := redis.Int(c.Receive()); err != nil || reply != n {
				return false, err
			}
		}
		return true, nil
	})
	check("transaction", func() (bool, error) {
		c.Send("MULTI")
		c.Send("SET", "a", 1)
		c.Send("INCR", "a")
		replies, err := redis.Values(c.Do("EXEC"))
		return err == nil && len(replies) == 2 && replies[1].(int64) == 2, err
	})
	check("pubsub", func() (bool, error) {
		conn, err := dial()
		if err != nil {
			return false, err
		}
		defer conn.Close()
		listener := redis.PubSubConn{Conn: conn}
		listener.Subscribe("news")
		for {
			switch event := listener.Receive().(type) {
			case redis.Subscription:
				c.Do("PUBLISH", "news", "hello")
			case redis.Message:
				return string(event.Data) == "hello", nil
			case error:
				return false, event
			}
		}
	})
	check("blocking", func() (bool, error) {
		go func() {
			time.Sleep(100 * time.Millisecond)
			if pusher, err := dial(); err == nil {
				defer pusher.Close()
				pusher.Do("RPUSH", "jobs", "job")
			}
		}()
		popped, err := redis.Strings(c.Do("BLPOP", "jobs", 10))
		return strings.Join(popped, ",") == "jobs,job", err
	})
	check("10 MiB", func() (bool, error) {
		value := strings.Repeat("v", 10<<20)
		if _, err := c.Do("SET", "big", value); err != nil {
			return false, err
		}
		stored, err := redis.String(c.Do("GET", "big"))
		return stored == value, err
	})
}

func ping() error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Do("PING")
	return err
}

func once() {
	if err := ping(); err != nil {
		fmt.Printf("error %T: %v\n", err, err)
	} else {
		fmt.Println("got PONG")
	}
}

func outlive() {
	pool := &redis.Pool{Dial: dial, MaxIdle: 1}
	do := func() error {
		c := pool.Get()
		defer c.Close()
		_, err := c.Do("PING")
		return err
	}
	do()
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	errors, kinds := 0, map[string]bool{}
	for ; errors < 400; errors++ {
		err := do()
		if err == nil {
			break
		}
		kinds[fmt.Sprintf("%T", err)] = true
		time.Sleep(50 * time.Millisecond)
	}
	fmt.Print("back after ", errors, " errors")
	for kind := range kinds {
		fmt.Print(" ", kind)
	}
	fmt.Println()
}

func serve() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	c, err := dial()
	if err != nil {
		panic(err)
	}
	c.Do("SET", "serving", 1)
	fmt.Println("ready")
	for {
		select {
		case <-stop:
			c.Do("SET", "farewell", "bye")
			fmt.Println("bye")
			return
		default:
			c.Do("BLPOP", "nothing", 1)
		}
	}
}

func main() {
	mode := "checks"
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	map[string]func(){"checks": checks, "once": once, "outlive": outlive, "serve": serve}[mode]()
}
